"""URL list of the demo, and the local HTTP server for the demo's images.

The list contains the URLs of emoji pictures on this server, with the names of the emoji as captions. A recipe that sets
`urls: priorkit:demo` uses this list.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..pipeline.compute.stage import ProgressFactory
from ..pipeline.contract.storage import Store
from ..pipeline.download.stage import plan_download
from ..pipeline.errors import PriorkitError
from .demo_picture import write_images
from .recipe import DEMO_URLS, Recipe

_POLL_SECONDS = 0.02
"""Seconds between the checks whether the server must stop. With the default of 0.5, each demo would end later."""


@contextlib.contextmanager
def demo_images(recipe: Recipe, progress: ProgressFactory, *, limit: int | None, overwrite: bool) -> Iterator[None]:
    """Context manager that writes the demo's images and URL list, and serves the images until the `with` block ends.

    If the recipe does not use the demo's URL list, this context manager does nothing. Otherwise, it writes the images
    and the list next to the folder of image shards. Existing images are kept. If the download is already complete, the
    server is not started.

    Raises:
        PriorkitError: the port is already in use, or the demo's packages are not installed.
    """
    port = recipe.demo_port
    if port is None:
        yield
        return
    path = Path(recipe.url_list)
    source = path.parent / "source"
    with progress("images", "files") as report:
        try:
            names = write_images(source, lambda done, total: report(done, total, ""))
        except ModuleNotFoundError as error:
            raise PriorkitError(str(error)) from None
    write_url_list(path, source, names, port)
    planned = plan_download(str(path), recipe.folders.images, recipe.download, limit=limit, overwrite=overwrite)
    with serve(source, port) if planned.pending_units else contextlib.nullcontext():
        yield


def write_url_list(path: Path, source: Path, names: list[tuple[str, str]], port: int) -> Path:
    """Write the URL list of the demo to `path`, and return `path`.

    In addition to the URLs of the images, the list contains six URLs that fail, each for a different reason. They show
    how failures are reported. For two of them, an invalid image file is written to `source`.

    Args:
        path: Parquet file to write, with the columns `url` and `caption`.
        source: existing folder of the images.
        names: file name and caption of each image.
        port: port of the demo's server.
    """
    base = f"http://127.0.0.1:{port}"
    (source / "page.png").write_text("<html><body>this is no image</body></html>\n")
    (source / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0 the first bytes of a JPEG and nothing else of it\n")
    rows = [(f"{base}/{name}", caption) for name, caption in names]
    dead = [
        (f"{base}/gone.png", "an image that is not there any more"),
        (f"{base}/page.png", "a page that says it is an image"),
        (f"{base}/damaged.jpg", "an image that is damaged"),
        ("http://127.0.0.1:9/refused.png", "a server that does not answer"),
        ("http://no-such-host.invalid/image.png", "a host that does not exist"),
        ("ftp://127.0.0.1/image.png", "a scheme that is not the web's"),
    ]
    spacing = len(rows) // (len(dead) + 1)
    for position, row in enumerate(dead, start=1):
        rows.insert(position * spacing, row)
    table = pa.table({"url": [url for url, _ in rows], "caption": [caption for _, caption in rows]})
    with Store(str(path.parent)).create(path.name) as file:
        pq.write_table(table, file)
    return path


@contextlib.contextmanager
def serve(folder: Path, port: int) -> Iterator[None]:
    """Context manager that serves the files in a folder over HTTP on 127.0.0.1 until the `with` block ends.

    Raises:
        PriorkitError: the port is already in use.
    """
    handler = functools.partial(_QuietHandler, directory=str(folder))
    try:
        server = _Server(("127.0.0.1", port), handler)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise PriorkitError(
            f"port {port} of this machine is taken, and the demo serves its images there; "
            f"end the program that uses it, or choose another by `priorkit demo --port` or urls={DEMO_URLS}:PORT, and "
            "new folders"
        ) from None
    thread = threading.Thread(
        target=server.serve_forever, args=(_POLL_SECONDS,), name="priorkit-demo-server", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(http.server.ThreadingHTTPServer):
    """HTTP server that handles each connection in its own thread."""

    request_queue_size = 128  # with the default of 5, connections are dropped, and each retry takes a second

    def handle_error(self, request: object, client_address: object) -> None:
        """Do nothing. The base class prints a traceback, for example when a client closes its connection early."""


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Handler that serves files, keeps each connection open for further requests, and does not log requests."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Discard log messages, which would garble the progress bar. The download stage already counts the requests."""
