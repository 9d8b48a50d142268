"""Main program of a decoder process: it reads bodies from a socket, and answers each with an image or a failure.

The socket is its standard input and output. `decoders.py` has the other side, `messages.py` the messages.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
from io import BufferedRWPair

from ..outcomes import ImageError, ResizedImage
from ..settings import DownloadSettings
from .messages import LENGTH, READY, pack

_ORPHAN_SECONDS = 5.0
"""Seconds after the time limit when a hanging decoder ends itself, in case its parent is gone and cannot kill it."""


def main() -> None:
    """Answer bodies until the socket is closed."""
    with socket.socket(fileno=os.dup(0)) as connection, connection.makefile("rwb") as stream:
        with contextlib.suppress(ConnectionError):  # the parent is gone
            _serve(stream)


def _serve(stream: BufferedRWPair) -> None:
    """Receive the settings, then answer each body."""
    request = _receive(stream)
    if request is None:
        return
    settings = DownloadSettings.model_validate_json(request)
    os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(settings.max_pixels)
    from .resize import ImageResizer  # imported here because OpenCV reads that variable as it loads

    resize = ImageResizer(settings)
    _limit_resources(settings)
    _redirect_output()
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


def _limit_resources(settings: DownloadSettings) -> None:
    """Limit the memory of this process, and forbid core dumps."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # many crashing images must not fill the disk
    if sys.platform == "linux":  # macOS accepts the limit but does not enforce it
        resource.setrlimit(resource.RLIMIT_AS, (settings.decode_memory_bytes, settings.decode_memory_bytes))
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # if the machine runs out of memory, kill the decoder first


def _redirect_output() -> None:
    """Redirect stdin, stdout and stderr to the null device: libraries print warnings, and stdout is the socket."""
    with open(os.devnull, "r+b") as nothing:
        for descriptor in (0, 1, 2):
            os.dup2(nothing.fileno(), descriptor)


def _receive(stream: BufferedRWPair) -> bytes | None:
    """Read the next message; None at the end of the socket."""
    length = stream.read(LENGTH.size)
    if len(length) < LENGTH.size:
        return None
    (size,) = LENGTH.unpack(length)
    message = stream.read(size)
    return message if len(message) == size else None


def _send(stream: BufferedRWPair, message: bytes) -> None:
    """Write a message, with its length before it."""
    stream.write(LENGTH.pack(len(message)))
    stream.write(message)
    stream.flush()
