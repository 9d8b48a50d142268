"""Decoder processes that decode, resize and encode images."""
