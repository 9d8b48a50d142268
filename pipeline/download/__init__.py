"""Download stage: fetches a list of URLs into image shards."""
