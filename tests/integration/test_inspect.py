"""`inspect` on what the real stages and the real img2dataset write, and on folders that are large."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from priorkit.cli import app
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.embed.stage import embed

from ..parity.img2dataset_server import serving_img2dataset


def inspect(folder: Path, *options: str) -> Any:
    result = CliRunner().invoke(app, ["inspect", str(folder), "--json", *options])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_what_our_stages_write_is_sound_and_described(
    images_folder: Path, embed_settings: EmbedSettings, tmp_path: Path
) -> None:
    images = inspect(images_folder, "--html", str(tmp_path / "images.html"))
    assert (images["stage"], images["rows"], images["problems"]) == ("download", 63, [])
    assert images["counts"] == {"success": 60, "http_4xx": 1, "not_image": 1, "refused": 1}
    assert sorted(message.partition(":")[0] for message in images["errors"]) == ["http_4xx", "not_image", "refused"]
    assert images["distributions"]["width in pixels"]["max"] == 32
    assert images["distributions"]["original width in pixels"]["rows"] == 60
    folder = tmp_path / "embeddings"
    embed(str(images_folder), str(folder), embed_settings)
    found = inspect(folder, "--html", str(tmp_path / "embeddings.html"))
    assert (found["stage"], found["rows"], found["problems"]) == ("embed", 60, [])
    assert found["about"]["clip"]["embed_dim"] == 16
    assert found["looked_at"]["image embeddings, for near duplicates: bank of rows"] == 60
    assert {name: values["rows"] for name, values in found["distributions"].items()} == {
        "cosine of image and text": 60,
        "cosine of unrelated image and text": 60,
        "cosine to the nearest image in the bank": 60,
        "norm of image embeddings": 60,
        "norm of text embeddings": 60,
        "caption length in characters": 60,
        "token states of a caption": 60,
        "norm of image embeddings before normalisation": 60,
        "norm of text embeddings before normalisation": 60,
    }
    for name, plots in (("images", 7), ("embeddings", 10)):
        page = (tmp_path / f"{name}.html").read_text()
        assert page.count("<svg") == plots


@pytest.mark.parametrize("only", [{"text": False, "token_states": False}, {"image": False}], ids=["images", "captions"])
def test_one_tower_is_sound_and_a_stray_file_is_seen(
    images_folder: Path, embed_settings: EmbedSettings, tmp_path: Path, only: dict[str, bool]
) -> None:
    folder = tmp_path / "embeddings"
    embed(str(images_folder), str(folder), embed_settings.model_copy(update=only))
    assert inspect(folder)["problems"] == []
    stray = next(iter(sorted((folder / ("img_emb" if "text" in only else "text_emb")).iterdir())))
    (stray.parent / f"{stray.name[:-8]}0009.npy").write_bytes(stray.read_bytes())
    result = CliRunner().invoke(app, ["inspect", str(folder), "--json"])
    assert result.exit_code == 1
    (problem,) = json.loads(result.stdout)["problems"]
    assert "0009.npy is in no record" in problem


@pytest.mark.slow
def test_what_img2dataset_itself_writes_is_sound(url_list: Any, tmp_path: Path) -> None:
    pq.write_table(pq.read_table(url_list.path).slice(0, 40), tmp_path / "list.parquet")
    options = {
        "url_list": str(tmp_path / "list.parquet"), "input_format": "parquet", "url_col": "url",
        "caption_col": "caption", "output_folder": str(tmp_path / "theirs"), "output_format": "webdataset",
        "number_sample_per_shard": 20, "image_size": 32, "processes_count": 1, "thread_count": 4,
        "enable_wandb": False, "retries": 0,
    }  # fmt: skip
    with serving_img2dataset() as img2dataset:
        img2dataset.download(**options)
    found = inspect(tmp_path / "theirs")
    assert (found["shards"], found["rows"], found["problems"]) == (2, 40, [])
    assert found["counts"]["success"] == 38
    assert sum(found["errors"].values()) == 2
    assert found["distributions"]["width in pixels"]["rows"] == 38


LARGE_DIM, SHARD_ROWS = 32, 50_000
PEAK = """
import json, sys
from priorkit.pipeline.inspect.folder import inspect_folder
from priorkit.pipeline.inspect import neighbours
neighbours.NeighbourBank.compare.__defaults__ = (1.0, neighbours.NEAR_COSINE)  # seconds
found = inspect_folder(sys.argv[1])
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([found.rows, found.problems, int(peak) * 1024]))
"""
"""`ru_maxrss` would include the memory of the process that starts this program."""


def write_large(folder: Path, shards: int) -> Path:
    random = np.random.default_rng(0)
    for shard in range(shards):
        image = random.normal(size=(SHARD_ROWS, LARGE_DIM)).astype(np.float32)
        image /= np.linalg.norm(image, axis=1, keepdims=True)
        for kind in ("img_emb", "text_emb"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            np.save(folder / kind / f"{kind}_{shard:04d}.npy", image.astype(np.float16))
        keys = pa.array([f"{shard:05d}{row:05d}" for row in range(SHARD_ROWS)])
        captions = pa.array([f"a caption of some length, number {row} of shard {shard}" for row in range(SHARD_ROWS)])
        (folder / "metadata").mkdir(exist_ok=True)
        pq.write_table(
            pa.table({"image_path": keys, "caption": captions}), folder / f"metadata/metadata_{shard:04d}.parquet"
        )
    return folder


def peak_bytes(folder: Path) -> tuple[int, int]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(folder)], env=environment, capture_output=True, text=True, check=True
    )
    rows, problems, peak = json.loads(done.stdout)
    assert problems == []
    return rows, peak


@pytest.mark.slow
def test_memory_grows_by_the_hashes_alone(tmp_path: Path) -> None:
    """Five times the rows: added are 32 bytes a row for hashes of keys and images, and 32 while they are sorted."""
    small_rows, small = peak_bytes(write_large(tmp_path / "small", 3))
    large_rows, large = peak_bytes(write_large(tmp_path / "large", 15))
    assert (small_rows, large_rows) == (150_000, 750_000)
    print(f"{(large - small) / (large_rows - small_rows):.1f} bytes a row")
    assert large - small < 80 * (large_rows - small_rows)
