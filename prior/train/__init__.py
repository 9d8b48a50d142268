"""Train stage: trains a prior on embeddings, in one process or on Ray."""
