"""The training objective: noise schedule, normaliser, and loss."""
