"""The demo: its list and its server alone, and, marked slow, the whole of it."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from priorkit.pipeline.errors import InputError, PriorkitError, SettingsError
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.prior.interchange.load import load_prior
from priorkit.recipes import demo_list as demo_images
from priorkit.recipes import demo_run as demo
from priorkit.recipes.chain import check, run
from priorkit.recipes.recipe import DEMO_PORT, load_recipe

from .conftest import PRIORKIT, environment

NAMES = [(f"{index}.png", f"emoji {index}") for index in range(70)]


@pytest.fixture
def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield int(held.getsockname()[1])


def test_the_list_holds_every_image_and_a_few_dead_links(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    path = demo_images.write_url_list(tmp_path / "urls.parquet", tmp_path / "source", NAMES, 4321)
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
    assert demo_images.write_url_list(path, tmp_path / "source", NAMES, 4321).read_bytes() == first


def test_the_server_answers_while_the_block_runs(tmp_path: Path, free_port: int) -> None:
    (tmp_path / "a.png").write_bytes(b"bytes of an image")
    with demo_images.serve(tmp_path, free_port):
        assert urllib.request.urlopen(f"http://127.0.0.1:{free_port}/a.png").read() == b"bytes of an image"
        with pytest.raises(urllib.error.HTTPError, match="404") as missing:
            urllib.request.urlopen(f"http://127.0.0.1:{free_port}/gone.png")
        missing.value.close()
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{free_port}/a.png")
    with demo_images.serve(tmp_path, free_port):  # the port is free again at once
        pass


def test_a_taken_port_is_named_with_the_way_out(tmp_path: Path, taken_port: int) -> None:
    with (
        pytest.raises(PriorkitError, match=f"port {taken_port} .* is taken.*--port"),
        demo_images.serve(tmp_path, taken_port),
    ):
        pass


def test_the_recipe_of_the_demo_writes_below_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "it's a: folder #1"
    recipe = demo.demo_recipe(folder, 4321, ["train.steps=3"])
    assert recipe.demo_port == 4321
    assert demo.demo_recipe(folder, None, []).demo_port == DEMO_PORT
    assert recipe.url_list == (folder / "urls.parquet").as_posix()
    assert recipe.folders.model_dump() == {
        name: (folder / name).as_posix() for name in ("images", "embeddings", "prior", "evaluation")
    }
    assert recipe.train.steps == 3
    assert recipe.read.test_fraction == 0.2, "a fifth of the rows is the test split"
    assert recipe.evaluate.splits == ("test",)
    assert recipe.evaluate.draws >= 8
    with pytest.raises(SettingsError, match="did you mean 'steps'"):
        demo.demo_recipe(folder, None, ["train.step=3"])


def test_an_interrupt_in_the_block_frees_the_port(tmp_path: Path, free_port: int) -> None:
    with pytest.raises(KeyboardInterrupt), demo_images.serve(tmp_path, free_port):
        raise KeyboardInterrupt
    with demo_images.serve(tmp_path, free_port):
        pass


def test_the_recipe_runs_from_any_folder(tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `priorkit run recipes/demo.yaml` does where priorkit is installed and there is no such file."""
    few = [("0.png", "one"), ("1.png", "two")]

    def write_few(folder: Path, report: Callable[[int, int], None]) -> list[tuple[str, str]]:
        folder.mkdir(parents=True, exist_ok=True)
        for name, _ in few:
            Image.new("RGB", (64, 64), "red").save(folder / name)
        return few

    monkeypatch.setattr(demo_images, "write_images", write_few)
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("recipes/demo.yaml", [f"urls=priorkit:demo:{free_port}"])
    with pytest.raises(InputError, match=f"priorkit:demo:{free_port}: its images and list are made by the first run"):
        check(recipe, until="download")
    (done,) = run(recipe, until="download")
    assert done.counts["success"] == 2
    assert done.rows == 8
    assert (tmp_path / "data/demo/urls.parquet").exists()
    with socket.create_server(("127.0.0.1", free_port)):  # nothing is served where nothing is left to do
        assert run(recipe, until="download")[0].done_now == 0
    remote = load_recipe("demo", ["folders.images=memory://images"])
    with pytest.raises(SettingsError, match=r"folders\.images, so memory://.* must be local"):
        run(remote, until="download")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/demo.yaml").write_text("urls: mine.csv\n")
    assert load_recipe("recipes/demo.yaml").urls == "mine.csv", "a file that is there is the one that is meant"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_demo(tmp_path: Path, free_port: int, folder_bytes: Callable[[Path], dict[str, bytes]]) -> None:
    folder = tmp_path / "demo"
    command = [PRIORKIT, "demo", "--folder", str(folder), "--port", str(free_port), "--json"]

    def run() -> dict[str, object]:
        done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        summary: dict[str, object] = json.loads(done.stdout)
        return summary

    first = run()
    predictors = first["metrics"]["splits"]["test"]["predictors"]  # type: ignore[index]
    scores = {found["name"]: found["metrics"]["energy_score"] for found in predictors}
    for name in ("text embedding", "mean shift", "ridge regression", "random training image"):
        assert scores["prior"]["high"] < scores[name]["low"], (name, scores)
    assert (folder / demo.PICTURE_NAME).read_bytes().startswith(b"\x89PNG")

    listed = pq.read_table(folder / "urls.parquet").to_pylist()
    tables = [pq.read_table(path) for path in sorted((folder / "images").glob("*.parquet"))]
    rows = pa.concat_tables(tables).to_pylist()
    assert [(row["url"], row["caption"]) for row in rows] == [(row["url"], row["caption"]) for row in listed]
    assert len({row["key"] for row in rows}) == len(rows) > 3900
    failed = [row for row in rows if row["status"] != "success"]
    assert len(failed) == 6
    assert all(row["error_message"] for row in failed)
    assert Counter(row["error_message"].partition(":")[0] for row in failed) == Counter(
        ["http_4xx", "not_image", "decode", "refused", "dns", "bad_scheme"]
    )

    dataset = EmbeddingDataset(str(folder / "embeddings"))
    everything = dataset.take(np.arange(dataset.count))
    assert dataset.count == len(rows) - 6
    similarity = everything.text_embed @ everything.image_embed.T  # [N, N]
    rank = (similarity > np.diag(similarity)[:, None]).sum(axis=1)
    assert (rank < 10).mean() >= 0.70

    prior, rows_seen = load_prior(str(folder / "prior")), dataset.take(dataset.rows("test")[:200])
    raw = prior.config.diffusion.model_copy(update={"output_norm": "none"})
    prior.config = prior.config.model_copy(update={"diffusion": raw})
    plain, guided = (
        prior.sample(text_embed=torch.from_numpy(rows_seen.text_embed), guidance_scale=scale).norm(dim=1).mean().item()
        for scale in (1.0, 3.0)
    )
    assert guided == pytest.approx(plain, rel=0.1), "text guidance keeps the norm of samples"

    before = folder_bytes(folder)
    start = time.monotonic()
    again = run()
    assert time.monotonic() - start < 60
    assert [stage["done_now"] for stage in again["stages"]] == [0, 0, 0, 0]  # type: ignore[attr-defined]
    assert folder_bytes(folder) == before
    assert again["metrics"] == first["metrics"]
