"""Whether a body is what the list of URLs says it is, by its hash."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from .fetching.fetch import FetchError

_KINDS = {32: "md5", 40: "sha1", 64: "sha256", 128: "sha512"}
"""Hashes by their hexadecimal digits."""


def check_hash(body: bytes, expected: Any) -> None:
    """Compare a body with the hash that the list has for it: MD5, SHA-1, SHA-256 or SHA-512, as digits or bytes.

    Args:
        expected: None asks nothing.

    Raises:
        FetchError: the outcome is `hash_mismatch`.
    """
    if expected in (None, "", b""):
        return
    text = (_digits(expected) if isinstance(expected, bytes) else str(expected)).strip().lower()
    kind = _KINDS.get(len(text))
    if kind is None or not re.fullmatch("[0-9a-f]+", text):
        raise FetchError("hash_mismatch", f"the list has {text[:80]!r}, which is no MD5, SHA-1, SHA-256 or SHA-512")
    found = hashlib.new(kind, body, usedforsecurity=False).hexdigest()
    if found != text:
        raise FetchError("hash_mismatch", f"{kind} is {found}, the list has {text}")


def _digits(stored: bytes) -> str:
    """Hexadecimal digits of a hash that the list stores as bytes: as these digits, or as the hash itself."""
    text = stored.decode("ascii", "replace").strip()
    return text if len(text) in _KINDS and re.fullmatch("[0-9A-Fa-f]+", text) else stored.hex()
