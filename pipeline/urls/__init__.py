"""URL list reader: supports several file formats, and yields batches of rows."""
