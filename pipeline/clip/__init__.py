"""CLIP models: finding and loading weights, comparing models, and encoding images and captions."""
