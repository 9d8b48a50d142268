"""The download stage: from a list of URLs to image shards."""
