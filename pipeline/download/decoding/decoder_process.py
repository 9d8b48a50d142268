"""What a decoding process does: it reads bodies from a socket, and answers each with an image or what is wrong with it.

It is started with that socket as its standard input and output. `decoders` is the other side.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
from io import BufferedRWPair

from ..outcomes import LENGTH, READY, ImageError, ResizedImage, pack
from ..settings import DownloadSettings

_ORPHAN_SECONDS = 5.0
"""A decoder that hangs is ended from outside; if nobody is left to do it, it ends by itself so much later."""


def main() -> None:
    """Answer bodies until there are no more: the end of the socket is the end of the process."""
    with socket.socket(fileno=os.dup(0)) as connection, connection.makefile("rwb") as stream:
        with contextlib.suppress(ConnectionError):  # whoever asked is gone
            _serve(stream)


def _serve(stream: BufferedRWPair) -> None:
    request = _receive(stream)
    if request is None:
        return
    settings = DownloadSettings.model_validate_json(request)
    os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(settings.max_pixels)
    from .resize import ImageResizer  # reads that variable

    resize = ImageResizer(settings)
    _limit(settings)
    _silence()
    _send(stream, READY)
    while (body := _receive(stream)) is not None:
        signal.setitimer(signal.ITIMER_REAL, settings.decode_timeout_seconds + _ORPHAN_SECONDS)
        answer: ResizedImage | ImageError
        try:
            answer = resize(body)
        except ImageError as error:
            answer = error
        except MemoryError:
            answer = ImageError("decode", f"more memory than {settings.decode_memory_bytes:,} bytes")
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(stream, pack(answer))


def _limit(settings: DownloadSettings) -> None:
    """Bound what one image may take of the machine."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a list of images that crash must not fill the disk
    if sys.platform == "linux":  # macOS has the limit, but does not keep it
        resource.setrlimit(resource.RLIMIT_AS, (settings.decode_memory_bytes, settings.decode_memory_bytes))
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # where memory runs out all the same, it is the decoder that ends


def _silence() -> None:
    """Decoders warn of damaged images on stderr, and nothing may be printed into the socket."""
    with open(os.devnull, "r+b") as nothing:
        for descriptor in (0, 1, 2):
            os.dup2(nothing.fileno(), descriptor)


def _receive(stream: BufferedRWPair) -> bytes | None:
    """The next message; None at the end."""
    length = stream.read(LENGTH.size)
    if len(length) < LENGTH.size:
        return None
    (size,) = LENGTH.unpack(length)
    message = stream.read(size)
    return message if len(message) == size else None


def _send(stream: BufferedRWPair, message: bytes) -> None:
    stream.write(LENGTH.pack(len(message)))
    stream.write(message)
    stream.flush()
