"""The demo's list of URLs and the server of its images."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.compute.stage import ProgressCallback
from priorkit.pipeline.errors import PriorkitError
from priorkit.recipes.demo_list import demo_images, serve, write_url_list
from priorkit.recipes.recipe import load_recipe

NAMES = [(f"{index}.png", f"emoji {index}") for index in range(70)]


@pytest.fixture
def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield int(taken.getsockname()[1])


def test_the_list_holds_every_image_and_a_few_dead_links(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    path = write_url_list(tmp_path / "urls.parquet", tmp_path / "source", NAMES, 4321)
    rows = pq.read_table(path).to_pylist()
    alive = [(row["url"], row["caption"]) for row in rows if row["caption"].startswith("emoji ")]
    assert alive == [(f"http://127.0.0.1:4321/{name}", caption) for name, caption in NAMES]
    dead = [row["url"] for row in rows if not row["caption"].startswith("emoji ")]
    assert [url.rpartition("/")[2] for url in dead] == [
        "gone.png", "page.png", "damaged.jpg", "refused.png", "image.png", "image.png",
    ]  # fmt: skip
    assert len({url.partition("/image")[0] for url in dead}) == 6
    positions = [index for index, row in enumerate(rows) if row["url"] in dead]
    assert min(np.diff(positions)) > 5, "spread over the list"
    first = path.read_bytes()
    assert write_url_list(path, tmp_path / "source", NAMES, 4321).read_bytes() == first


def test_the_server_answers_while_the_block_runs(tmp_path: Path, free_port: int) -> None:
    (tmp_path / "a.png").write_bytes(b"bytes of an image")
    with serve(tmp_path, free_port):
        assert urllib.request.urlopen(f"http://127.0.0.1:{free_port}/a.png").read() == b"bytes of an image"
        with pytest.raises(urllib.error.HTTPError, match="404") as missing:
            urllib.request.urlopen(f"http://127.0.0.1:{free_port}/gone.png")
        missing.value.close()
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{free_port}/a.png")
    with serve(tmp_path, free_port):  # the port is free again at once
        pass


def test_a_taken_port_is_named_with_the_way_out(tmp_path: Path, taken_port: int) -> None:
    with (
        pytest.raises(PriorkitError, match=f"port {taken_port} .* is taken.*--port"),
        serve(tmp_path, taken_port),
    ):
        pass


def test_an_interrupt_in_the_block_frees_the_port(tmp_path: Path, free_port: int) -> None:
    with pytest.raises(KeyboardInterrupt), serve(tmp_path, free_port):
        raise KeyboardInterrupt
    with serve(tmp_path, free_port):
        pass


def test_another_list_is_neither_written_nor_served(tmp_path: Path, taken_port: int) -> None:
    recipe = load_recipe(None, ["urls=mine.csv", f"folders.images={tmp_path / 'images'}"])

    def no_progress(stage: str, unit: str) -> ProgressCallback:
        raise AssertionError("progress was opened")

    with demo_images(recipe, no_progress, limit=None, overwrite=False):  # type: ignore[arg-type]
        assert list(tmp_path.iterdir()) == []
