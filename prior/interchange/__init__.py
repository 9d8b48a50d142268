"""Checkpoints of other tools: reading, checking, and converting them."""
