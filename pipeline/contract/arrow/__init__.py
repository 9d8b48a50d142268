"""Support for the Arrow types and columns found in tables written by other tools."""
