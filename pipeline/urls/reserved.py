"""Names of columns that have a fixed meaning in the shards."""

from __future__ import annotations

ADDED_COLUMNS = ("key", "status", "error_message", "width", "height", "original_width", "original_height", "sha256")
"""Columns that the download stage adds to each row."""

EMBED_COLUMNS = ("image_path", "image_norm", "text_norm")
"""Columns that the embed stage adds to each row."""

RESERVED_COLUMNS = frozenset({"url", "caption", *ADDED_COLUMNS, *EMBED_COLUMNS})
"""Column names with a fixed meaning in the shards.

A column of the URL list with one of these names is renamed, unless it is the configured URL or caption column.
"""
