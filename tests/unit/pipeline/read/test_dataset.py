"""Rows by number, orders of a split, and folders that are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.contract.empty_inputs import EmptyInputs, write_empty_inputs
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import InputError
from priorkit.pipeline.read.dataset import EmbeddingDataset, read_embeddings
from priorkit.pipeline.read.settings import ReadSettings

from ..conftest import ABOUT

WriteEmbeddings = Callable[..., Path]
NAMES = [f"row{number}" for number in range(300)]
SHARDS = [NAMES[:100], NAMES[100:180], NAMES[180:]]
HALVES = ReadSettings(validation_fraction=0.3, test_fraction=0.2)


def keys(dataset: EmbeddingDataset, rows: np.ndarray) -> list[str]:
    return dataset.metadata(rows, ["key"]).column("key").to_pylist()


def test_rows_are_numbered_by_shard_and_position(write_embeddings: WriteEmbeddings) -> None:
    dataset = read_embeddings(str(write_embeddings(SHARDS)))
    assert (dataset.count, dataset.embed_dim, dataset.token_width) == (300, 8, 4)
    assert keys(dataset, np.arange(300)) == NAMES


def test_rows_are_read_in_the_given_order_with_all_columns(
    write_embeddings: WriteEmbeddings,
    vector_of: Callable[[str, str], np.ndarray],
    states_of: Callable[[str], np.ndarray],
) -> None:
    dataset = read_embeddings(str(write_embeddings(SHARDS)))
    rows = np.array([299, 0, 150, 100, 99, 179, 180, 7, 7, 211])
    batch = dataset.take(rows, max_text_len=3)
    assert batch.image_embed.dtype == batch.text_embed.dtype == np.float32
    assert batch.token_states is not None
    assert batch.token_states.shape == (10, 3, 4)
    for place, row in enumerate(rows):
        assert np.array_equal(batch.image_embed[place], vector_of(NAMES[row], "img").astype(np.float32))
        assert np.array_equal(batch.text_embed[place], vector_of(NAMES[row], "text").astype(np.float32))
        expected = np.zeros((3, 4), np.float32)
        known = states_of(NAMES[row])[:3]
        expected[: len(known)] = known
        assert np.array_equal(batch.token_states[place], expected)
    assert keys(dataset, rows) == [NAMES[row] for row in rows]
    assert dataset.take(rows).token_states is None


def test_no_rows_give_an_empty_batch(write_embeddings: WriteEmbeddings) -> None:
    dataset = read_embeddings(str(write_embeddings(SHARDS)))
    batch = dataset.take(np.array([], np.int64), max_text_len=2)
    assert batch.image_embed.shape == (0, 8)
    assert batch.token_states is not None
    assert batch.token_states.shape == (0, 2, 4)
    assert dataset.metadata(np.array([], np.int64), ["key"]).num_rows == 0


def test_empty_shards_shift_no_row(
    write_embeddings: WriteEmbeddings, vector_of: Callable[[str, str], np.ndarray]
) -> None:
    dataset = read_embeddings(str(write_embeddings([[], NAMES[:2], [], [], NAMES[2:4], []])))
    assert keys(dataset, np.arange(4)) == NAMES[:4]
    assert np.array_equal(dataset.take(np.array([2])).image_embed[0], vector_of("row2", "img").astype(np.float32))


def test_the_order_of_an_epoch_is_a_pure_function_of_seed_and_epoch(write_embeddings: WriteEmbeddings) -> None:
    folder = str(write_embeddings(SHARDS))
    one, other = EmbeddingDataset(folder, HALVES), EmbeddingDataset(folder, HALVES)
    order = one.epoch_order("train", seed=3, epoch=1)
    assert np.array_equal(order, other.epoch_order("train", seed=3, epoch=1))
    assert sorted(order) == one.rows("train").tolist()
    for seed, epoch in ((3, 2), (4, 1), (1, 3)):
        assert not np.array_equal(order, one.epoch_order("train", seed=seed, epoch=epoch))


def test_a_split_plan_is_cached_and_made_again_if_it_is_damaged(write_embeddings: WriteEmbeddings) -> None:
    folder = write_embeddings(SHARDS)
    split_plan = EmbeddingDataset(str(folder), HALVES).split_plan
    (path,) = (folder / "selections").iterdir()
    for damage in (b"", b"no array", path.read_bytes()[:-5]):
        path.write_bytes(damage)
        assert np.array_equal(EmbeddingDataset(str(folder), HALVES).split_plan, split_plan)
    assert len(path.read_bytes()) > 300


def test_a_read_only_folder_caches_no_split_plan(write_embeddings: WriteEmbeddings) -> None:
    folder = write_embeddings(SHARDS)
    (folder / "selections").write_bytes(b"in the way of the folder")
    assert len(EmbeddingDataset(str(folder), HALVES).split_plan) == 300


def test_pickled_arrays_are_never_loaded(
    write_embeddings: WriteEmbeddings, replace_array: Callable[[Path, str, np.ndarray], None]
) -> None:
    folder = write_embeddings(SHARDS)
    replace_array(folder, "img_emb/img_emb_0000.npy", np.array([print] * 100, dtype=object))
    with pytest.raises(InputError, match=r"img_emb_0000\.npy is not an array of numbers"):
        read_embeddings(str(folder)).take(np.arange(3))


def test_a_missing_column_of_the_metadata_is_named(write_embeddings: WriteEmbeddings) -> None:
    dataset = read_embeddings(str(write_embeddings(SHARDS)))
    with pytest.raises(InputError, match=r"metadata_0000\.parquet has no column 'licence'"):
        dataset.metadata(np.arange(3), ["licence"])


def test_metadata_of_another_length_is_refused(write_embeddings: WriteEmbeddings) -> None:
    folder = write_embeddings(SHARDS)
    path = folder / "metadata/metadata_0000.parquet"
    pq.write_table(pa.table({"key": NAMES[:50]}), path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"]["0000"]["files"]["metadata/metadata_0000.parquet"]["bytes"] = path.stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="50 rows, its record says 100"):
        read_embeddings(str(folder)).metadata(np.arange(3), ["key"])


def test_missing_token_states_are_refused(write_embeddings: WriteEmbeddings) -> None:
    folder = write_embeddings(SHARDS)
    manifest = json.loads((folder / "manifest.json").read_text())
    for shard in manifest["shards"].values():
        shard["files"] = {name: entry for name, entry in shard["files"].items() if "token_states" not in name}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"token_states/.* is in no record"):
        read_embeddings(str(folder))
    shutil.rmtree(folder / "token_states")
    dataset = read_embeddings(str(folder))
    assert dataset.token_width is None
    with pytest.raises(InputError, match="stores no token states; embed with token_states: true"):
        dataset.take(np.arange(3), max_text_len=2)


def test_folders_that_hold_no_embeddings_are_refused(write_embeddings: WriteEmbeddings, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no result of `priorkit embed`"):
        read_embeddings(str(tmp_path / "none"))
    with pytest.raises(InputError, match="holds no embeddings"):
        read_embeddings(str(write_embeddings([[], []], "empty")))


def test_a_folder_without_text_embeddings_opens(write_embeddings: WriteEmbeddings) -> None:
    folder = write_embeddings(SHARDS)
    manifest = json.loads((folder / "manifest.json").read_text())
    for shard in manifest["shards"].values():
        shard["files"] = {name: entry for name, entry in shard["files"].items() if "text_emb" not in name}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(folder / "text_emb")
    dataset = read_embeddings(str(folder))
    assert len(dataset.rows("train")) > 200
    with pytest.raises(InputError, match=r"stores no text embeddings; embed with embed\.text=true"):
        dataset.take(np.arange(3))


def image_norm(name: str) -> float:
    return 5 + int(name[3:]) / 16


def text_norm(name: str) -> float:
    return 9 - int(name[3:]) / 64


NORMS = {"image_norm": image_norm, "text_norm": text_norm}


def test_norms_are_those_of_the_metadata_and_cached(write_embeddings: WriteEmbeddings) -> None:
    folder = write_embeddings(SHARDS, norms=NORMS)
    dataset = EmbeddingDataset(str(folder), HALVES)
    assert (dataset.has_norms("img_emb"), dataset.has_norms("text_emb")) == (True, True)
    assert list(folder.glob("selections/*_norm_*")) == []
    for kind, norm in (("img_emb", image_norm), ("text_emb", text_norm)):
        found = dataset.norms(kind)  # type: ignore[arg-type]
        assert found.dtype == np.float32
        assert found.tolist() == [norm(name) for name in NAMES]
    (cached,) = folder.glob("selections/text_norm_*.npy")
    values = np.load(cached)
    values[7] = 100
    np.save(cached, values)
    assert EmbeddingDataset(str(folder)).norms("text_emb")[7] == 100  # read from the cache


def test_raw_text_embeddings_are_multiplied_by_their_norms(write_embeddings: WriteEmbeddings) -> None:
    dataset = read_embeddings(str(write_embeddings(SHARDS, norms=NORMS)))
    rows = np.array([299, 0, 150, 7, 7])
    unit, raw = dataset.take(rows), dataset.take(rows, raw_text=True)
    norms = np.array([text_norm(NAMES[row]) for row in rows], np.float32)
    assert raw.text_embed.dtype == np.float32
    assert np.array_equal(raw.text_embed, unit.text_embed * norms[:, None])
    assert np.array_equal(raw.image_embed, unit.image_embed)


def test_a_folder_without_norms_is_refused_with_the_fix(write_embeddings: WriteEmbeddings) -> None:
    dataset = read_embeddings(str(write_embeddings(SHARDS, norms={"image_norm": image_norm})))
    assert (dataset.has_norms("img_emb"), dataset.has_norms("text_emb")) == (True, False)
    expected = (
        r"stores no norms of its text embeddings before normalisation: metadata/metadata_0000\.parquet has no column "
        r"'text_norm'\.\n.*embed\.engine=native, or adopt .* `priorkit adopt --normalise`"
    )
    with pytest.raises(InputError, match=expected):
        dataset.norms("text_emb")
    with pytest.raises(InputError, match=expected):
        dataset.take(np.arange(2), raw_text=True)


def test_a_norm_that_is_not_positive_is_named(write_embeddings: WriteEmbeddings) -> None:
    norms = {"image_norm": lambda name: 0.0 if name == "row130" else 3.0}
    dataset = read_embeddings(str(write_embeddings(SHARDS, norms=norms)))
    with pytest.raises(InputError, match=r"metadata_0001\.parquet, row 30: image_norm is 0\.0, not a positive finite"):
        dataset.norms("img_emb")


@pytest.mark.parametrize(
    ("about", "known"),
    [
        (ABOUT, True),
        ({**ABOUT, "spaces": {}}, False),
        ({"spaces": {"target": {"name": "a", "size": 8}}, "not_clip": "other"}, True),
    ],
    ids=["embedded", "adopted", "adopted, not of a CLIP"],
)
def test_norms_of_embeddings_that_were_adopted_as_unit_vectors_are_unknown(
    write_embeddings: WriteEmbeddings, about: dict[str, Any], known: bool
) -> None:
    """Vectors of other models may have norm 1 themselves."""
    folder = write_embeddings(SHARDS, norms={"image_norm": lambda name: 0.9995}, about=about)
    if "spaces" in about:
        manifest = json.loads((folder / "manifest.json").read_text())
        about = {**about, "spaces": {role: {"name": role, "size": 8} for role in ("source", "target")}}
        for record in manifest["shards"].values():  # a folder that is not of a CLIP has no token states
            record["files"] = {name: file for name, file in record["files"].items() if "token_states" not in name}
        shutil.rmtree(folder / "token_states")
        (folder / "manifest.json").write_text(json.dumps({**manifest, "stage": "adopt", "about": about}))
    dataset = read_embeddings(str(folder))
    assert dataset.has_norms("img_emb") is known
    if not known:
        with pytest.raises(InputError, match=r"they had norm 1 when they were adopted \(column 'image_norm'\)"):
            dataset.norms("img_emb")


def test_empty_inputs_are_read_if_the_manifest_records_them(write_embeddings: WriteEmbeddings) -> None:
    folder = write_embeddings(SHARDS)
    assert read_embeddings(str(folder)).empty_inputs is None
    values = np.arange(8, dtype=np.float32)
    about = write_empty_inputs(Store(str(folder)), EmptyInputs(values, values + 1, None))
    assert read_embeddings(str(folder)).empty_inputs is None
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["about"] |= about
    (folder / "manifest.json").write_text(json.dumps(manifest))
    empty = read_embeddings(str(folder)).empty_inputs
    assert empty is not None
    assert empty.text_embed.tolist() == (values + 1).tolist()
