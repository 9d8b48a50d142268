"""The demo: emoji as images, their names as captions, served on this machine; the whole chain, offline."""

from __future__ import annotations

import contextlib
import errno
import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ..pipeline.download import plan_download
from ..pipeline.errors import PriorkitError
from ..pipeline.stage import StageResult
from ..pipeline.storage import Store
from ..recipes.openmoji import write_images
from .recipe import Recipe, load_recipe
from .run import ProgressFactory, StopRequests, run

PICTURE_NAME = "nearest.png"

_CAPTIONS_SHOWN = 8
_IMAGES_SHOWN = 4


class DemoResult(NamedTuple):
    """What the demo did."""

    recipe: Recipe
    results: list[StageResult]
    picture: Path


def run_demo(
    folder: Path, port: int, overrides: list[str], progress: ProgressFactory, stop_requests: StopRequests
) -> DemoResult:
    """Make the images, serve them, run the recipe, and draw the picture.

    Raises:
        PriorkitError: the port is taken, or whatever a stage finds wrong.
    """
    source = folder / "source"
    with progress("images", "files") as report:
        try:
            names = write_images(source, lambda done, total: report(done, total, ""))
        except ModuleNotFoundError as error:
            raise PriorkitError(str(error)) from None
    urls = write_url_list(folder / "urls.parquet", source, names, port)
    recipe = demo_recipe(folder, urls, overrides)
    planned = plan_download(recipe.urls, recipe.folders.images, recipe.download)
    with serve(source, port) if planned.pending_units else contextlib.nullcontext():
        results = run(recipe, progress=progress, stop_requests=stop_requests)
    picture = draw_picture(recipe, folder, stale=any(result.done_now for result in results))
    return DemoResult(recipe, results, picture)


def demo_recipe(folder: Path, urls: Path, overrides: list[str]) -> Recipe:
    """The recipe `demo` with its folders below `folder`."""
    folders = {name: folder / name for name in ("images", "embeddings", "prior", "evaluation")}
    placed = [f"urls={json.dumps(urls.as_posix())}"]
    placed += [f"folders.{name}={json.dumps(path.as_posix())}" for name, path in folders.items()]
    return load_recipe("demo", [*placed, *overrides])


def write_url_list(path: Path, source: Path, names: list[tuple[str, str]], port: int) -> Path:
    """Write the list of URLs, with a few that fail, each in a way of its own."""
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
    every = len(rows) // (len(dead) + 1)
    for position, row in enumerate(dead, start=1):
        rows.insert(position * every, row)
    table = pa.table({"url": [url for url, _ in rows], "caption": [caption for _, caption in rows]})
    with Store(str(path.parent)).create(path.name) as file:
        pq.write_table(table, file)
    return path


@contextlib.contextmanager
def serve(folder: Path, port: int) -> Iterator[None]:
    """Serve a folder over HTTP on this machine while the block runs."""
    handler = functools.partial(_QuietHandler, directory=str(folder))
    try:
        server = _Server(("127.0.0.1", port), handler)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise PriorkitError(
            f"port {port} of this machine is taken, and the demo serves its images there; "
            "end the program that uses it, or choose another with --port and a new --folder"
        ) from None
    thread = threading.Thread(target=server.serve_forever, name="priorkit-demo-server", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128  # the default of 5 drops connections, which then cost a second each

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is no news."""


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Requests are counted by the download; the log would tear the progress bar."""


def draw_picture(recipe: Recipe, folder: Path, stale: bool) -> Path:
    """Draw the nearest images for a few captions of the test split, unless the picture is there and up to date."""
    path = folder / PICTURE_NAME
    if path.exists() and not stale:
        return path
    from ..pipeline.read import EmbeddingDataset
    from .evaluated_rows import EvaluatedRows
    from .gallery import draw_gallery, nearest_images, read_images
    from .load import load_prior

    dataset = EmbeddingDataset(recipe.folders.embeddings, recipe.read)
    rows = EvaluatedRows(dataset, recipe.evaluate.splits[0], recipe.evaluate).rows[:_CAPTIONS_SHOWN]
    found = nearest_images(load_prior(recipe.folders.prior), dataset, rows, _IMAGES_SHOWN, recipe.evaluate.seed)
    keys = {key for row in found for key in (*row.by_text, *row.by_prior)}
    title = "Captions that the prior was not trained on, and the images nearest to them (green: the true one)"
    picture = draw_gallery(found, read_images(recipe.folders.images, keys), title)
    with Store(str(folder)).create(path.name) as file:
        file.write(picture)
    return path
