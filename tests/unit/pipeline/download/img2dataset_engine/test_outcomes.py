"""Outcomes of rows from img2dataset's messages. The messages are those of Python 3.10 to 3.13 and OpenCV 4."""

from __future__ import annotations

import pytest

from priorkit.pipeline.download.img2dataset_engine.outcomes import img2dataset_outcome
from priorkit.pipeline.download.outcomes import FETCH_OUTCOMES, IMAGE_OUTCOMES

URL = "http://h/x"
FETCHES = [
    (URL, "HTTP Error 404: Not Found", "http_4xx"),
    (URL, "HTTP Error 403: Forbidden: the read operation timed out", "http_4xx"),
    (URL, "HTTP Error 429: Too Many Requests", "http_429"),
    (URL, "HTTP Error 503: Service Unavailable", "http_5xx"),
    (URL, "HTTP Error 304: Not Modified", "http_other"),
    (URL, "HTTP Error 999: ", "http_other"),
    (
        URL,
        "HTTP Error 302: The HTTP server returned a redirect error that would lead to an infinite loop.\n"
        "The last 30x error message was:\nFound",
        "redirect_loop",
    ),
    (URL, "Use of image disallowed by X-Robots-Tag directive", "opted_out"),
    (URL, "timed out", "timeout"),
    (URL, "The read operation timed out", "timeout"),
    (URL, "<urlopen error timed out>", "timeout"),
    (URL, "<urlopen error _ssl.c:989: The handshake operation timed out>", "timeout"),
    (URL, "<urlopen error [Errno 110] Connection timed out>", "timeout"),
    (URL, "<urlopen error [Errno -2] Name or service not known>", "dns"),
    (URL, "<urlopen error [Errno -3] Temporary failure in name resolution>", "dns"),
    (URL, "<urlopen error [Errno -5] No address associated with hostname>", "dns"),
    (URL, "<urlopen error [Errno 8] nodename nor servname provided, or not known>", "dns"),
    (URL, "<urlopen error [Errno 111] Connection refused>", "refused"),
    (URL, "<urlopen error [Errno 101] Network is unreachable>", "refused"),
    (URL, "<urlopen error [Errno 113] No route to host>", "refused"),
    (URL, "<urlopen error Tunnel connection failed: 407 Proxy Authentication Required>", "proxy"),
    (
        "https://h/x",
        "<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired "
        "(_ssl.c:1006)>",
        "tls",
    ),
    ("https://h/x", "<urlopen error EOF occurred in violation of protocol (_ssl.c:1007)>", "tls"),
    (URL, "Remote end closed connection without response", "connection"),
    (URL, "[Errno 104] Connection reset by peer", "connection"),
    (URL, "IncompleteRead(7 bytes read, 93 more expected)", "connection"),
    (URL, "<urlopen error [Errno 5] Input/output error>", "connection"),
    (URL, "garbage", "bad_response"),
    (URL, "", "bad_response"),
    (URL, "got more than 65536 bytes when reading header line", "bad_response"),
    ("http://h/a b", "URL can't contain control characters. '/a b' (found at least ' ')", "bad_url"),
    ("http://h:x/", "nonnumeric port: 'x'", "bad_url"),
    ("http:///x", "<urlopen error no host given>", "bad_url"),
    (
        "http://h/猫",
        "'ascii' codec can't encode character '\\u732b' in position 5: ordinal not in range(128)",
        "bad_url",
    ),
    ("http://[h/", "Invalid IPv6 URL", "bad_url"),
    ("http://.h/", "encoding with 'idna' codec failed (UnicodeError: label empty or too long)", "bad_url"),
    ("s3://b/x", "<urlopen error unknown url type: s3>", "bad_scheme"),
    ("h/x.jpg", "unknown url type: 'h/x.jpg'", "bad_scheme"),
    ("file:///no", "<urlopen error [Errno 2] No such file or directory: '/no'>", "bad_scheme"),
    ("", "unknown url type: ''", "empty_url"),
    (" ", "unknown url type: ''", "empty_url"),
    (None, "unknown url type: 'None'", "empty_url"),
]
IMAGES = [
    ("Image decoding error", "decode"),
    ("image too small", "filtered"),
    ("image area too large", "filtered"),
    ("aspect ratio too large", "filtered"),
    (
        "OpenCV(4.14.0) /io/opencv/modules/imgcodecs/src/loadsave.cpp:75: error: (-215:Assertion failed) "
        "pixels <= CV_IO_MAX_IMAGE_PIXELS in function 'validateInputImageSize'\n",
        "too_many_pixels",
    ),
    ("OpenCV(4.14.0) loadsave.cpp:1: error: (-2:Unspecified error) could not encode in function 'imencode'", "encode"),
    ("'tuple' object has no attribute 'tobytes'", "encode"),
    ("[Errno 24] Too many open files: '/dev/null'", "decode"),
]


@pytest.mark.parametrize(("url", "message", "outcome"), FETCHES)
def test_a_failed_fetch_has_an_outcome(url: str | None, message: str, outcome: str) -> None:
    row = {"url": url, "status": "failed_to_download", "error_message": message}
    assert img2dataset_outcome(row) == outcome
    assert outcome in FETCH_OUTCOMES


@pytest.mark.parametrize(("message", "outcome"), IMAGES)
def test_a_failed_image_has_an_outcome(message: str, outcome: str) -> None:
    row = {"url": URL, "status": "failed_to_resize", "error_message": message}
    assert img2dataset_outcome(row) == outcome
    assert outcome in IMAGE_OUTCOMES


def test_a_success_has_its_outcome() -> None:
    assert img2dataset_outcome({"url": URL, "status": "success", "error_message": None}) == "success"
