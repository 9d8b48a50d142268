"""Download engine that runs the downloader of the img2dataset package on each shard."""
