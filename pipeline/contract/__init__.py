"""Format of stage folders on disk: file names and hashes, manifests, and atomic shard commits."""
