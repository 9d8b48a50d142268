"""Embed stage: turns images and captions into embedding shards."""
