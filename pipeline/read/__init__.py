"""Reader for embedding shards: access by row number, splits, shuffled batches, captions and token states."""
