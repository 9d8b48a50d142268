"""From URLs to batches of embeddings: download, embed, read, and the on-disk contract that joins them."""
