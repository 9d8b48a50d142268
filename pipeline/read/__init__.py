"""Reader for embedding shards: rows by number, splits, shuffled batches, captions and token states."""
