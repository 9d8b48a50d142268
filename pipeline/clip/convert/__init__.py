"""CLIP models in the formats of other packages, converted to open_clip's architecture."""
