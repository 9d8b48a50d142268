"""Inputs that caused tracebacks in the fuzz test; now each is refused with a message."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.embed.inputs import list_input_shards
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.errors import InputError, PriorkitError, SettingsError
from priorkit.pipeline.inspect.folder import inspect_folder
from priorkit.pipeline.inspect.statistics import content_hashes
from priorkit.pipeline.nearest import suggest
from priorkit.pipeline.read.dataset import read_embeddings
from priorkit.pipeline.urls.url_list import open_url_list
from priorkit.prior.model.config import PriorConfig, build_network
from priorkit.prior.network.settings import NetworkSettings

TEXT = pa.array(["a", "b"])
DATES = pa.array([2**30, 2**30], pa.date32())
"""Dates that Python lacks."""


def write_table(path: Path, **columns: pa.Array) -> None:
    names = [name.rstrip("_") for name in columns]  # `key_` stands for a second `key`
    pq.write_table(pa.Table.from_arrays(list(columns.values()), names=names), path)


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for row in range(2):
            tar.addfile(tarfile.TarInfo(f"{row}.jpg"), io.BytesIO())


@pytest.mark.parametrize(
    "columns", [{"caption": TEXT, "caption_": TEXT}, {"caption": TEXT, "key": DATES}], ids=["twice", "dates"]
)
def test_tables_of_captions(columns: dict[str, pa.Array], tmp_path: Path) -> None:
    write_table(tmp_path / "table.parquet", **columns)
    store = Store(str(tmp_path))

    def read() -> None:
        for shard in list_input_shards(str(tmp_path), EmbedSettings(image=False, input_format="parquet")):
            list(shard.read(store))

    with pytest.raises((InputError, SettingsError), match=r"table\.parquet"):
        read()


@pytest.mark.parametrize(
    "columns",
    [
        {"status": pa.array([[1], [2]])}, {"status": TEXT, "status_": TEXT}, {"key": DATES, "status": TEXT},
        {"caption": TEXT, "caption_": TEXT}, {"key": pa.array([[1], [1]]), "status": TEXT},
    ],
    ids=["list", "status twice", "dates", "caption twice", "keys that are lists"],
)  # fmt: skip
def test_tables_of_image_shards(columns: dict[str, pa.Array], tmp_path: Path) -> None:
    write_tar(tmp_path / "00000.tar")
    write_table(tmp_path / "00000.parquet", **columns)
    (tmp_path / "00000_stats.json").write_text('{"count": 1e999, "successes": Infinity, "status_dict": {}}')
    for call in (lambda: inspect_folder(str(tmp_path)), lambda: list_input_shards(str(tmp_path), EmbedSettings())):
        refused = ""
        try:
            call()
        except PriorkitError as error:  # or it is read, which later versions may do
            refused = str(error)
        assert "\n" not in refused
    assert inspect_folder_problems(tmp_path)


def inspect_folder_problems(folder: Path) -> int:
    try:
        return inspect_folder(str(folder)).problem_count
    except PriorkitError:
        return 1


def test_unhashable_values_have_hashes() -> None:
    one, other, third = content_hashes([[1], [2], [1]], 3).tolist()
    assert one == third
    assert one != other


@pytest.mark.parametrize("wrong", [{"stage": {"": {}}}, {"about": {"clip": {}, "clip_settings": {}}}])
def test_manifests(write_embeddings: Callable[..., Path], wrong: dict[str, Any]) -> None:
    folder = write_embeddings([["a", "b"]])
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **wrong}))
    with pytest.raises(InputError, match="manifest"):
        read_embeddings(str(folder))


@pytest.mark.parametrize("width", [None, "8", 0, -8, True, 2**70, 1e300, [8]])
@pytest.mark.parametrize("name", ["embed_dim", "token_width"])
def test_widths_in_manifests(write_embeddings: Callable[..., Path], name: str, width: Any) -> None:
    folder = write_embeddings([["a", "b"]])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["about"]["clip"][name] = width
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=f"manifest gives .* as the CLIP's {name}"):
        read_embeddings(str(folder))


@pytest.mark.parametrize("rows", [-1, 2.5, True, "2", 2**49, 10**300])
def test_numbers_of_rows_in_manifests(write_embeddings: Callable[..., Path], rows: Any) -> None:
    folder = write_embeddings([["a", "b"]])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"]["0000"]["rows"] = rows
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for read in (read_embeddings, inspect_folder):
        with pytest.raises(InputError, match=r"manifest\.json is not a priorkit manifest"):
            read(str(folder))


def test_a_file_name_too_long_for_any_file_system(write_embeddings: Callable[..., Path]) -> None:
    folder = write_embeddings([["a", "b"]])
    manifest = json.loads((folder / "manifest.json").read_text())
    files = manifest["shards"]["0000"]["files"]
    files["img_emb/" + "a" * 9000 + ".npy"] = files["img_emb/img_emb_0000.npy"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for read in (read_embeddings, inspect_folder):
        with pytest.raises(InputError, match=r"file name 'img_emb/a{52}\.\.\.' is not a plain relative name"):
            read(str(folder))
    assert Store(str(folder)).size("a" * 9000) is None


def test_an_array_whose_header_alone_is_damaged(write_embeddings: Callable[..., Path]) -> None:
    folder = write_embeddings([["a", "b"]])
    path = folder / "img_emb/img_emb_0000.npy"
    content = path.read_bytes()
    assert b"(2, 8)" in content
    path.write_bytes(content.replace(b"(2, 8)", b"(2, 6)"))
    with pytest.raises(InputError, match=r"img_emb_0000\.npy holds embeddings of 6 in float16, the manifest says 8"):
        read_embeddings(str(folder)).embeds("img_emb", np.arange(2))


def test_a_column_whose_name_is_not_utf8(tmp_path: Path) -> None:
    pq.write_table(pa.table({"caption": TEXT, "licence": TEXT}), tmp_path / "table.parquet", compression="none")
    content = (tmp_path / "table.parquet").read_bytes()
    (tmp_path / "table.parquet").write_bytes(content.replace(b"licence", b"lic\x80nce"))
    with pytest.raises(InputError, match=r"table\.parquet is no parquet file"):
        list_input_shards(str(tmp_path), EmbedSettings(image=False, input_format="parquet"))
    with pytest.raises(InputError, match=r"table\.parquet"):
        open_url_list(str(tmp_path), DownloadSettings(url_column="caption"))


def test_a_long_key_is_not_compared_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("priorkit.pipeline.nearest._similarity", None)
    assert suggest(["_".join(["stepts"] * 4000)], [("train", "steps"), ("train", "validate_every")]) is None


@pytest.mark.parametrize("size", [{"num_text_embeds": 2**62}, {"width": 2**64}, {"heads": 2**70}])
def test_networks_larger_than_any_memory(size: dict[str, int]) -> None:
    config = PriorConfig.model_construct(
        embed_dim=8, text_dim=8, token_width=None, network=NetworkSettings.model_construct(**size)
    )
    with pytest.raises(SettingsError, match="network: it is too large to be made"):
        build_network(config)
