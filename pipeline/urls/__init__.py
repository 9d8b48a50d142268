"""URL lists in several file formats, read as batches of rows."""
