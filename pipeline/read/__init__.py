"""The reader: rows, splits, shuffled batches, and captions of embedding shards."""
