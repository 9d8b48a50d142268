"""Code that reads, checks and buffers arrays of embeddings."""
