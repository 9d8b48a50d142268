"""Check of a body against the hash that the list states for it."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from .outcomes import FetchError

_KINDS = {32: "md5", 40: "sha1", 64: "sha256", 128: "sha512"}
"""Hash functions by their number of hexadecimal digits."""


def check_hash(body: bytes, expected: Any) -> None:
    """Compare a body with an MD5, SHA-1, SHA-256 or SHA-512.

    Args:
        expected: hexadecimal digits, as text or bytes, or the digest itself; None and empty values are not checked.

    Raises:
        FetchError: the hash differs, or the value is no hash; the outcome is `hash_mismatch`.
    """
    if expected in (None, "", b""):
        return
    text = (_digits(expected) if isinstance(expected, bytes) else str(expected)).strip().lower()
    kind = _KINDS.get(len(text))
    if kind is None or not re.fullmatch("[0-9a-f]+", text):
        raise FetchError("hash_mismatch", f"the list has {text[:80]!r}, which is no MD5, SHA-1, SHA-256 or SHA-512")
    actual = hashlib.new(kind, body, usedforsecurity=False).hexdigest()
    if actual != text:
        raise FetchError("hash_mismatch", f"{kind} is {actual}, the list has {text}")


def _digits(stored: bytes) -> str:
    """Return the hexadecimal digits of a hash that is stored as bytes: as its digits, or as its digest."""
    text = stored.decode("ascii", "replace").strip()
    return text if len(text) in _KINDS and re.fullmatch("[0-9A-Fa-f]+", text) else stored.hex()
