"""Inspection of a folder of images or embeddings: faults, statistics and distributions."""
