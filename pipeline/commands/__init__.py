"""Pipeline commands, one per module."""
