"""The on-disk contract: names and hashes of files, manifests, and atomic commits of shards."""
