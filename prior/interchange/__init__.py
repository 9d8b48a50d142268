"""Checkpoints from other tools: reading, validation, and conversion."""
