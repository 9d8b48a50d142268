"""The demo: its download from any folder, and the whole chain, which is marked slow."""

from __future__ import annotations

import json
import socket
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from priorkit.pipeline.errors import InputError, SettingsError
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.prior.interchange.load import load_prior
from priorkit.recipes import demo_list as demo_images
from priorkit.recipes import demo_run as demo
from priorkit.recipes.chain import check, run
from priorkit.recipes.recipe import load_recipe

from .conftest import PRIORKIT, environment


@pytest.fixture
def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


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


SHORT = "train.steps=200"
"""Setting that ends the training before half of the demo's 500 steps. The energy score is then 0.25, or 0.24 after 500
steps; the test needs less than 0.33."""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_demo(tmp_path: Path, free_port: int, folder_bytes: Callable[[Path], dict[str, bytes]]) -> None:
    folder = tmp_path / "demo"
    command = [PRIORKIT, "demo", "--folder", str(folder), "--port", str(free_port), "--json", "--set", SHORT]

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

    prior, rows_seen = load_prior(str(folder / "prior")), dataset.take(dataset.rows("test")[:100])
    raw = prior.config.diffusion.model_copy(update={"output_norm": "none"})
    prior.config = prior.config.model_copy(update={"diffusion": raw})
    text_embed = torch.from_numpy(rows_seen.text_embed)
    plain, guided = (
        prior.sample(text_embed=text_embed, steps=16, guidance_scale=scale).norm(dim=1).mean().item()
        for scale in (1.0, 3.0)
    )
    assert guided == pytest.approx(plain, rel=0.1), "text guidance keeps the norm of samples"

    before = folder_bytes(folder)
    again = run()
    assert [stage["done_now"] for stage in again["stages"]] == [0, 0, 0, 0]  # type: ignore[attr-defined]
    assert folder_bytes(folder) == before
    assert again["metrics"] == first["metrics"]
