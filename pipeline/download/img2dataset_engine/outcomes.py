"""Outcomes of the rows that img2dataset wrote, derived from its error messages.

img2dataset stores the text of the exception that made a row fail. priorkit counts rows by outcome, and
`--retry-failed` fetches rows with certain outcomes again. The stored messages stay unchanged.
"""

from __future__ import annotations

import re
from typing import Any

from ..outcomes import SUCCESS

_FILTERED = frozenset({"image too small", "image area too large", "aspect ratio too large"})
"""Messages of img2dataset's resizer for images that its filters reject."""
_HTTP_ERROR = re.compile(r"HTTP Error (\d{3})")
_WEB_URL = re.compile(r"\s*https?:", re.IGNORECASE)
_PATTERNS = (
    ("opted_out", r"disallowed by X-Robots-Tag"),
    ("proxy", r"Tunnel connection failed"),
    ("timeout", r"timed out"),
    ("tls", r"CERTIFICATE_VERIFY_FAILED|\bSSL\b|_ssl\.c"),
    ("dns", r"\[Errno -\d+\]|getaddrinfo failed|nodename nor servname|name resolution|No address associated"),
    ("refused", r"refused|unreachable|No route to host|Cannot assign requested address"),
    (
        "bad_url",
        r"control characters|nonnumeric port|no host given|Invalid IPv6|codec can't encode|with 'idna' codec"
        r"|[Ll]abel (?:empty|too long)|Port out of range|Port could not be cast",
    ),
    ("connection", r"IncompleteRead|Remote end closed|reset by peer|Connection aborted|Broken pipe|\[Errno \d+\]"),
)
"""Pairs of an outcome and a pattern for img2dataset's messages. The first pattern that matches decides."""


def img2dataset_outcome(row: dict[str, Any]) -> str:
    """Return the outcome of a row that img2dataset wrote.

    Args:
        row: row of a shard's table, keyed by column: the columns of the list, `status` and `error_message`.
    """
    status, message = row["status"], row["error_message"] or ""
    if status == "success":
        return SUCCESS
    return _image_outcome(message) if status == "failed_to_resize" else _fetch_outcome(row["url"] or "", message)


def _image_outcome(message: str) -> str:
    if message in _FILTERED:
        return "filtered"
    if "CV_IO_MAX_IMAGE" in message:
        return "too_many_pixels"
    # OpenCV returns an empty tuple in place of an image that it cannot encode
    return "encode" if "imencode" in message or "'tobytes'" in message else "decode"


def _fetch_outcome(url: str, message: str) -> str:
    if not url.strip():
        return "empty_url"
    if match := _HTTP_ERROR.match(message):
        return "redirect_loop" if "infinite loop" in message else _status_outcome(int(match[1]))
    if not _WEB_URL.match(url):
        return "bad_scheme"  # urllib also opens file:, ftp: and data: URLs, whose failures have other messages
    return next((outcome for outcome, pattern in _PATTERNS if re.search(pattern, message)), "bad_response")


def _status_outcome(status: int) -> str:
    if status == 429:
        return "http_429"
    return f"http_{status // 100}xx" if 400 <= status < 600 else "http_other"
