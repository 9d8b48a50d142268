"""Reader of URL lists: several file formats, all read as batches of rows."""
