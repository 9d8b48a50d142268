"""The embed stage: from images and captions to embedding shards."""
