"""The embed stage: images and captions -> embedding shards."""
