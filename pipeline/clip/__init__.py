"""CLIP models: the source of their weights, their identity, and the image and text encoders."""
