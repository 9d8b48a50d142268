"""CLIP models: where weights come from, what identifies them, and the image and text encoders."""
