"""Names of the possible outcomes of downloading a list row, and the exceptions that carry them.

The outcome is `success`, one of `FETCH_OUTCOMES` or one of `IMAGE_OUTCOMES`. The manifest counts rows by outcome.

"Transient" has two meanings:

- `TRANSIENT_OUTCOMES` are the failures after which `--retry-failed` fetches a row again in a later run.
- `FetchError.transient` marks a failure that may disappear within seconds, so the URL is retried within the same
  fetch. The retry policy is in `fetching/retry.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

SUCCESS = "success"
"""Outcome of a row whose image is in the shard."""

FETCH_OUTCOMES = frozenset(
    {
        "empty_url",  # the row has no URL
        "bad_url",  # the URL cannot be parsed, or holds credentials
        "bad_scheme",  # the scheme is not http or https
        "no_file",  # the path names no file that can be read
        "blocked_address",  # the host is a private or metadata address
        "dns",  # the host name cannot be resolved
        "refused",  # the connection cannot be opened
        "connection",  # the connection breaks before the response is complete
        "proxy",  # the proxy is unreachable or refuses the URL
        "tls",  # the TLS handshake fails, such as for an invalid certificate
        "timeout",  # the deadline passes before the body is complete
        "http_429",  # too many requests
        "http_4xx",  # any other status from 400 to 499
        "http_5xx",  # any status from 500 to 599
        "http_other",  # any other status without an image
        "bad_response",  # the response violates HTTP or does not match its Content-Encoding
        "redirect_loop",  # too many redirects
        "too_large",  # the body exceeds `max_bytes`
        "opted_out",  # the X-Robots-Tag header forbids using the image
        "robots",  # robots.txt forbids the fetch
        "hash_mismatch",  # the hash of the body differs from the hash in the list
    }
)
"""Outcomes of rows whose response body cannot be fetched or has the wrong hash.

The status of such a row is `failed_to_download`, as in img2dataset.
"""

IMAGE_OUTCOMES = frozenset(
    {
        "not_image",  # the first bytes match no known image format
        "too_many_pixels",  # the header states more than `max_pixels`
        "filtered",  # a size or aspect filter rejects the image
        "decode",  # the image is damaged, or its decoder crashed or hung
        "encode",  # the image is too large for the format that stores it
        "bad_boxes",  # the list's value is no list of boxes to blur
    }
)
"""Outcomes of rows whose response body cannot be turned into a stored image.

The status of such a row is `failed_to_resize`, as in img2dataset.
"""

TRANSIENT_OUTCOMES = frozenset({"dns", "refused", "proxy", "tls", "connection", "timeout", "http_429", "http_5xx"})
"""Outcomes of rows that may succeed in a later run, for example once a resolver, clock or network is fixed.

`--retry-failed` fetches these rows again.
"""


class FetchError(Exception):
    """Raised when a URL cannot be fetched or its body has the wrong hash. `outcome` is one of `FETCH_OUTCOMES`."""

    def __init__(
        self, outcome: str, detail: str = "", *, transient: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(outcome, detail)
        self.outcome = outcome
        self.detail = detail
        self.transient = transient
        """True if another attempt within the same fetch may succeed."""
        self.retry_after = retry_after
        """Seconds to wait before another attempt, from the Retry-After header; None if there is no valid header."""

    def __str__(self) -> str:
        return f"{self.outcome}: {self.detail}" if self.detail else self.outcome


class ImageError(Exception):
    """Raised when a response body cannot be turned into a stored image. `outcome` is one of `IMAGE_OUTCOMES`."""

    def __init__(self, outcome: str, detail: str = "") -> None:
        super().__init__(f"{outcome}: {detail}" if detail else outcome)
        self.outcome = outcome
        self.detail = detail


@dataclass(frozen=True)
class ResizedImage:
    """Image to store, with its size in pixels before and after resizing."""

    data: bytes
    width: int
    height: int
    original_width: int
    original_height: int
    exif: str | None = None
    """EXIF tags as the text of a JSON object; None if they cannot be read or are not extracted."""
