"""Lists of URLs in any file format, read as batches of rows."""
