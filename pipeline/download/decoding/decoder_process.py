"""Main program of a decoder process: reads requests from a socket and answers each with an image or an error.

The socket is the standard input and output of the process. `decoders.py` implements the parent's end of the socket,
and `messages.py` defines the message format.
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
from .messages import LENGTH, READY, pack, unpack_request

_ORPHAN_SECONDS = 5.0
"""Extra seconds, after `decode_timeout_seconds`, before a hung decoder process terminates itself.

The parent normally kills a hung decoder earlier, so this matters only if the parent is no longer running.
"""


def main() -> None:
    """Answer the requests that arrive on the socket, until the parent closes it."""
    with socket.socket(fileno=os.dup(0)) as connection, connection.makefile("rwb") as stream:
        with contextlib.suppress(ConnectionError):  # the parent is gone
            _serve(stream)


def _serve(stream: BufferedRWPair) -> None:
    """Receive the download settings, then answer each request with an image or an error.

    Return when the parent closes the connection.
    """
    request = _receive(stream)
    if request is None:
        return
    settings = DownloadSettings.model_validate_json(request)
    os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(settings.max_pixels)
    from .resize import ImageResizer  # imported here because OpenCV reads the variable on import

    resize = ImageResizer(settings)
    _limit_resources(settings)
    _redirect_output()
    _send(stream, READY)
    while (message := _receive(stream)) is not None:
        signal.setitimer(signal.ITIMER_REAL, settings.decode_timeout_seconds + _ORPHAN_SECONDS)
        answer: ResizedImage | ImageError
        try:
            answer = resize(*unpack_request(message))
        except ImageError as error:
            answer = error
        except MemoryError:
            answer = ImageError("decode", f"more memory than {settings.decode_memory_bytes:,} bytes")
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(stream, pack(answer))


def _limit_resources(settings: DownloadSettings) -> None:
    """Limit the memory of this process (on Linux only) and disable core dumps."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crashing decoder must not fill the disk with core dumps
    if sys.platform == "linux":  # macOS accepts the limit but does not enforce it
        resource.setrlimit(resource.RLIMIT_AS, (settings.decode_memory_bytes, settings.decode_memory_bytes))
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # if the machine runs out of memory, the kernel kills a decoder first


def _redirect_output() -> None:
    """Redirect stdin, stdout and stderr to the null device, so that library warnings do not reach the socket."""
    with open(os.devnull, "r+b") as nothing:
        for descriptor in (0, 1, 2):
            os.dup2(nothing.fileno(), descriptor)


def _receive(stream: BufferedRWPair) -> bytes | None:
    """Read and return the next message, or None at the end of the stream."""
    length = stream.read(LENGTH.size)
    if len(length) < LENGTH.size:
        return None
    (size,) = LENGTH.unpack(length)
    message = stream.read(size)
    return message if len(message) == size else None


def _send(stream: BufferedRWPair, message: bytes) -> None:
    """Write a message, preceded by its length."""
    stream.write(LENGTH.pack(len(message)))
    stream.write(message)
    stream.flush()
