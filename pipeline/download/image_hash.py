"""Hash check for response bodies: compares the hash of each body with the expected hash from the URL list."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from .outcomes import FetchError

_KINDS = {32: "md5", 40: "sha1", 64: "sha256", 128: "sha512"}
"""Names of the hash functions, keyed by the length of a digest in hexadecimal digits."""


def check_hash(body: bytes, expected: Any) -> None:
    """Check that a response body has the expected hash. The length of `expected` determines the hash function.

    Args:
        body: response body.
        expected: MD5, SHA-1, SHA-256 or SHA-512, as hexadecimal digits (text or bytes) or as a raw digest (bytes).
            Nothing is checked if the value is None or empty.

    Raises:
        FetchError: the hash differs or `expected` is not a valid hash. The outcome is `hash_mismatch`.
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
    """Return a stored hash as hexadecimal digits.

    Args:
        stored: hash as ASCII hexadecimal digits or as a raw digest. The bytes are taken as a raw digest unless
            they are 32, 40, 64 or 128 hexadecimal digits.
    """
    text = stored.decode("ascii", "replace").strip()
    return text if len(text) in _KINDS and re.fullmatch("[0-9A-Fa-f]+", text) else stored.hex()
