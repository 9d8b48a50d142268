"""Outcomes of a row: their names, which of them are transient, and the exceptions that carry them.

A row's outcome is `success`, one of `FETCH_OUTCOMES` or one of `IMAGE_OUTCOMES`. The manifest counts them by name.

"Transient" has two senses:

- `TRANSIENT_OUTCOMES` are fetched again by `--retry-failed`, in a later run.
- `FetchError.transient` marks a failure that another attempt may fix within seconds, in the same fetch. The policy for
  these attempts is in `fetching/retry.py`.
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
        "blocked_address",  # the host is a private or metadata address
        "dns",  # the host name is not resolved
        "refused",  # the connection is refused
        "connection",  # the connection breaks
        "proxy",  # the proxy is unreachable or refuses
        "tls",  # the certificate is not accepted
        "timeout",  # the deadline passes
        "http_429",  # too many requests
        "http_4xx",
        "http_5xx",
        "http_other",  # any other status that brings no image
        "bad_response",  # the response breaks HTTP, or its stated encoding
        "redirect_loop",
        "too_large",  # the body exceeds `max_bytes`
        "opted_out",  # the X-Robots-Tag header forbids the use
        "robots",  # robots.txt forbids the fetch
        "hash_mismatch",  # the body has another hash than the list states
    }
)
"""Failures before a body is decoded; img2dataset's status for them is `failed_to_download`."""

IMAGE_OUTCOMES = frozenset(
    {
        "not_image",  # the first bytes are those of no known format
        "too_many_pixels",  # the header states more than `max_pixels`
        "filtered",  # a size or aspect filter rejects the image
        "decode",  # the image is damaged, or its decoder crashed or hung
        "encode",  # the stored format holds no image of this size
    }
)
"""Failures of a body that arrived; img2dataset's status for them is `failed_to_resize`."""

TRANSIENT_OUTCOMES = frozenset({"dns", "refused", "proxy", "tls", "connection", "timeout", "http_429", "http_5xx"})
"""Failures that may pass with time, or with a repaired resolver, clock or network; `--retry-failed` fetches them."""


class FetchError(Exception):
    """Failure to fetch a URL. `outcome` is one of `FETCH_OUTCOMES`."""

    def __init__(
        self, outcome: str, detail: str = "", *, transient: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(outcome, detail)
        self.outcome = outcome
        self.detail = detail
        self.transient = transient
        """True if another attempt within the same fetch may succeed."""
        self.retry_after = retry_after
        """Seconds that the server asks to wait before another attempt."""

    def __str__(self) -> str:
        return f"{self.outcome}: {self.detail}" if self.detail else self.outcome


class ImageError(Exception):
    """Failure to turn a body into an image. `outcome` is one of `IMAGE_OUTCOMES`."""

    def __init__(self, outcome: str, detail: str = "") -> None:
        super().__init__(f"{outcome}: {detail}" if detail else outcome)
        self.outcome = outcome
        self.detail = detail


@dataclass(frozen=True)
class ResizedImage:
    """Encoded image, with its sizes in pixels before and after the resize."""

    data: bytes
    width: int
    height: int
    original_width: int
    original_height: int
