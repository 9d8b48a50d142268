"""Decoder processes, which decode, resize and encode images."""
