"""Image file formats, and conversion of pixels to upright 8-bit images."""
