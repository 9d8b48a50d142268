"""Image file formats, and pixels turned upright in 8 bits."""
