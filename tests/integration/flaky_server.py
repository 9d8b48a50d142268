"""A server whose images fail for as long as a test wants."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..conftest import QuietHandler, picture, serving


@dataclass
class FlakyServer:
    """A server of `/NUMBER.jpg`, which answers with an image or, without a body, with the status that is set."""

    url: str
    status: dict[int, int] = field(default_factory=dict)
    """HTTP status by image number, for the images that fail."""
    asked: list[int] = field(default_factory=list)
    """Numbers of the requested images."""


@contextlib.contextmanager
def serving_flaky() -> Iterator[FlakyServer]:
    server = FlakyServer("")

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            number = int(self.path.strip("/").partition(".")[0])
            server.asked.append(number)
            status = server.status.get(number, 200)
            body = picture(number) if status == 200 else b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with serving(Handler) as server.url:
        yield server
