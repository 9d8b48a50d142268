"""The on-disk contract: files under a root, their hashes, manifests, and how a shard is committed."""
