"""Download stage: fetches the images in a URL list and stores them in shards."""
