"""Format of the folders that pipeline stages write: file names and hashes, manifests, and atomic shard commits."""
