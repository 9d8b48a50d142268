"""Detection of image file formats, and conversion to upright 8-bit images."""
