"""Training objective: noise schedule, normaliser, randomness and loss."""
