"""The inspect command: statistics and faults of a folder of images or embeddings."""
