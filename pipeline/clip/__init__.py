"""CLIP models: weight sources, identities, and image and text encoders."""
