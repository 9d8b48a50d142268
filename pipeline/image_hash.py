"""Whether a body is what the list of URLs says it is, by its hash."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from .fetch import FetchError

_KINDS = {32: "md5", 40: "sha1", 64: "sha256"}
"""Hashes by their hexadecimal digits."""


def check_hash(body: bytes, expected: Any) -> None:
    """Compare a body with the hash that the list has for it: MD5, SHA-1 or SHA-256 in hexadecimal; None asks nothing.

    Raises:
        FetchError: the outcome is `hash_mismatch`.
    """
    if expected is None or expected == "":
        return
    text = str(expected).strip().lower()
    kind = _KINDS.get(len(text))
    if kind is None or not re.fullmatch("[0-9a-f]+", text):
        raise FetchError("hash_mismatch", f"the list has {text[:80]!r}, which is no MD5, SHA-1 or SHA-256")
    found = hashlib.new(kind, body, usedforsecurity=False).hexdigest()
    if found != text:
        raise FetchError("hash_mismatch", f"{kind} is {found}, the list has {text}")
