"""Main program of the child process that runs img2dataset's downloader.

`child.py` implements the parent's end. Messages are lines of JSON. The parent sends requests on the standard input of
the process. The process answers on its standard output:

- `["ready"]`: img2dataset is imported.
- `["row", key, status, error_message, bytes]`: a row is finished; `bytes` is the size of the response body.
- `["done"]`: all files of the shard are complete.
- `["failed", text, errno]`: the shard failed; `errno` is null unless the error came from the operating system.

Only this module and `decoding/resize.py` may import img2dataset.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import queue
import shutil
import sys
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, NoReturn

from ...explain import one_line
from .request import INPUT_NAME, Request


def main() -> None:
    """Download the shards that the parent asks for, until the parent ends."""
    parent = _Parent()
    classes = _load_img2dataset()
    _discard(2)  # img2dataset prints the traceback of each failure that it stores
    parent.send("ready")
    for request in parent.requests():
        try:
            _download(parent, request, *classes)
        except Exception as error:
            parent.fail(error)
        parent.send("done")


def _load_img2dataset() -> tuple[Any, Any, Any, Any]:
    """Import img2dataset, and return its classes.

    They are `Downloader`, `Resizer`, `BoundingBoxBlurrer` and `WebDatasetSampleWriter`.

    The `__init__.py` of the package is not run, because it imports Ray and torch, which takes seconds.
    """
    package = importlib.util.find_spec("img2dataset")
    if package is None:
        raise ModuleNotFoundError("img2dataset is not installed: pip install img2dataset")
    sys.modules["img2dataset"] = importlib.util.module_from_spec(package)
    from img2dataset.blurrer import BoundingBoxBlurrer
    from img2dataset.downloader import Downloader
    from img2dataset.resizer import Resizer
    from img2dataset.writer import WebDatasetSampleWriter

    return Downloader, Resizer, BoundingBoxBlurrer, WebDatasetSampleWriter


def _download(parent: _Parent, request: Request, downloader: Any, resizer: Any, blurrer: Any, writer: Any) -> None:
    """Download one shard with img2dataset's classes."""
    has_boxes = request.downloader["blurring_bbox_col"] is not None
    measured = _MeasuredResizer(resizer(**request.resizer, blurrer=blurrer() if has_boxes else None))
    download = downloader(
        sample_writer_class=partial(_ReportingWriter, parent, measured, writer), resizer=measured, **request.downloader
    )
    download.download_shard((int(request.name), f"{request.folder}/{INPUT_NAME}"))


class _Parent:
    """Connection to the parent. When the parent ends, this process removes its working folder and ends too."""

    def __init__(self) -> None:
        self._input = os.fdopen(os.dup(0), "rb")
        self._output = os.fdopen(os.dup(1), "wb")
        _discard(0, 1)  # img2dataset prints to stdout
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._folder: str | None = None
        threading.Thread(target=self._read, name="requests", daemon=True).start()

    def requests(self) -> Iterator[Request]:
        """Yield the requests, waiting for each."""
        while True:
            yield self._requests.get()

    def send(self, *message: Any) -> None:
        """Send a message."""
        try:
            self._output.write(json.dumps(message).encode() + b"\n")
            self._output.flush()
        except BrokenPipeError:
            self._end()

    def fail(self, error: Exception, row: str = "") -> NoReturn:
        """Tell the parent that the shard failed, and end this process at once.

        img2dataset would go on after most errors, without the row that failed. Its threads cannot be stopped.

        Args:
            error: cause of the failure.
            row: key of the row that failed; empty if no single row failed.
        """
        if isinstance(error, OSError) and error.errno is not None:
            self.send("failed", error.strerror or one_line(error), error.errno)
        else:
            self.send("failed", f"row {row}: {one_line(error)}" if row else one_line(error), None)
        os._exit(1)

    def _read(self) -> None:
        """Receive requests until the parent has ended, then end this process."""
        for line in self._input:
            request = Request.from_line(line)
            self._folder = request.folder
            self._requests.put(request)
        self._end()

    def _end(self) -> NoReturn:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        os._exit(0)


class _MeasuredResizer:
    """img2dataset's resizer, which notes the size of the body that it was last called with."""

    def __init__(self, resizer: Any) -> None:
        self._resizer = resizer
        self.bytes = 0
        """Size of the last response body in bytes; 0 after the row was reported."""

    def __call__(self, stream: io.BytesIO, boxes: Any = None) -> Any:
        self.bytes = stream.getbuffer().nbytes
        return self._resizer(stream, boxes)


class _ReportingWriter:
    """img2dataset's writer, which reports each row to the parent after it is written.

    If a row cannot be written, the process ends. img2dataset itself would drop the row and go on.

    Args:
        parent: connection to the parent.
        resizer: resizer that knows the size of the row's body.
        writer: class `WebDatasetSampleWriter` of img2dataset.
        arguments: arguments of that class.
    """

    def __init__(self, parent: _Parent, resizer: _MeasuredResizer, writer: Any, *arguments: Any) -> None:
        self._parent, self._resizer, self._writer = parent, resizer, writer(*arguments)

    def write(self, image: bytes | None, key: str, caption: str | None, meta: dict[str, Any]) -> None:
        """Write a row and report it."""
        try:
            self._writer.write(image, key, caption, meta)
        except Exception as error:
            self._parent.fail(error, key)
        self._parent.send("row", key, meta["status"], meta["error_message"], self._resizer.bytes)
        self._resizer.bytes = 0

    def close(self) -> None:
        """Finish the files of the shard."""
        self._writer.close()


def _discard(*descriptors: int) -> None:
    """Redirect file descriptors of this process to the null device."""
    with open(os.devnull, "r+b") as nothing:
        for descriptor in descriptors:
            os.dup2(nothing.fileno(), descriptor)
