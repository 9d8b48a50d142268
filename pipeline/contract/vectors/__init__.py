"""Embedding arrays in files, and the rules for valid embeddings."""
