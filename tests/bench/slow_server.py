"""A web server for the bench of the slow list: cheap, so that the clients have the machine, and slow to answer.

`python slow_server.py` prints its port and serves on every loopback address until its input ends. The path says what
to do: `/SECONDS/NUMBER` answers with an image after that time, `/never/NUMBER` never, `/dribble/NUMBER` sends a byte a
second for ever.
"""

from __future__ import annotations

import asyncio
import io
import sys

import numpy as np
from PIL import Image

IMAGE_SIDE = 256


def image() -> bytes:
    """A JPEG of about 10 kB."""
    noise = np.random.default_rng(0).integers(0, 256, (IMAGE_SIDE // 10, IMAGE_SIDE // 10, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=60)
    return file.getvalue()


BODY = image()
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)


class Slow(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer a request, which comes in one piece here."""
        what = data.split(b"/", 2)[1]
        loop = asyncio.get_running_loop()
        if what == b"dribble":
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            self._dribble()
        elif what != b"never":
            loop.call_later(float(what), self._transport.write, RESPONSE)

    def _dribble(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(b"\xff")
            asyncio.get_running_loop().call_later(1, self._dribble)


async def main() -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Slow, "0.0.0.0", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
