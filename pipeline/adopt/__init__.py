"""Adopt stage: embeddings that other programs wrote become a folder in priorkit's layout."""
