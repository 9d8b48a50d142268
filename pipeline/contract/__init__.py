"""The on-disk contract: file names and hashes, manifests, and atomic shard commits."""
