"""Decoder processes, which resize and encode images."""
