"""Shards as they are written: vectors, norms, metadata, and rows that cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.adopt.settings import AdoptSettings
from priorkit.pipeline.adopt.stage import adopt
from priorkit.pipeline.adopt.worker import Norms
from priorkit.pipeline.errors import InputError

from .conftest import ROWS, clip_retrieval, fixed, save, save_table, units


def run(source: Path, target: Path, **values: object) -> dict[str, int]:
    return adopt(str(source), str(target), AdoptSettings(not_clip="x", **values)).counts  # type: ignore[arg-type]


def read(folder: Path, shard: str = "0000") -> tuple[np.ndarray, np.ndarray, pa.Table]:
    arrays = [np.load(folder / f"{kind}/{kind}_{shard}.npy") for kind in ("img_emb", "text_emb")]
    return arrays[0], arrays[1], pq.read_table(folder / f"metadata/metadata_{shard}.parquet")


def test_unit_vectors_of_float16_keep_every_bit(tmp_path: Path) -> None:
    source = clip_retrieval(tmp_path / "in")
    run(source, tmp_path / "out")
    for shard in range(2):
        image, text, table = read(tmp_path / "out", f"000{shard}")
        for kind, stored in (("img_emb", image), ("text_emb", text)):
            assert (tmp_path / f"out/{kind}/{kind}_000{shard}.npy").read_bytes() == (
                source / f"{kind}/{kind}_{shard}.npy"
            ).read_bytes()
            assert stored.dtype == np.float16
        assert table.column_names == ["key", "caption", "image_path", "image_norm", "text_norm"]
        assert table["key"].to_pylist() == [f"0{shard}{row:03d}" for row in range(ROWS)]
        norms = np.linalg.norm(image.astype(np.float32), axis=1)
        np.testing.assert_allclose(table["image_norm"].to_numpy(), norms, rtol=1e-6)


def test_norms_are_kept_when_vectors_are_normalised(tmp_path: Path) -> None:
    scales = np.linspace(0.5, 30, ROWS, dtype=np.float32)[:, None]
    save(tmp_path / "in/image.npy", units() * scales)
    save(tmp_path / "in/text.npy", units(seed=1))
    with pytest.raises(InputError, match=r"image\.npy, row 0: the image embedding has norm 0\.5, not 1; --normalise"):
        run(tmp_path / "in", tmp_path / "out")
    run(tmp_path / "in", tmp_path / "new", normalise=True)
    image, _, table = read(tmp_path / "new")
    np.testing.assert_allclose(image, units(), atol=1e-3)
    np.testing.assert_allclose(table["image_norm"].to_numpy(), scales[:, 0], rtol=1e-5)
    np.testing.assert_allclose(table["text_norm"].to_numpy(), 1, rtol=1e-5)


def bad_rows(folder: Path) -> None:
    image, text = units(), units(seed=1)
    image[3], image[7, 2], text[11, 0] = 0, np.nan, np.inf
    rows = text.tolist()
    rows[15] = None
    save_table(folder / "t.parquet", key=[f"k{row}" for row in range(ROWS)], image=fixed(image), text=rows)


def test_a_row_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    bad_rows(tmp_path / "in")
    with pytest.raises(InputError, match=r"t\.parquet, image, row 3: the image embedding is all zeros; --skip-invalid"):
        run(tmp_path / "in", tmp_path / "out")


def test_rows_that_are_left_out_are_failures_with_a_reason(tmp_path: Path) -> None:
    bad_rows(tmp_path / "in")
    assert run(tmp_path / "in", tmp_path / "out", skip_invalid=True) == {"success": 16, "invalid_embedding": 4}
    image, text, table = read(tmp_path / "out")
    keep = [row for row in range(ROWS) if row not in (3, 7, 11, 15)]
    np.testing.assert_allclose(image, units()[keep], atol=1e-3)
    np.testing.assert_allclose(text, units(seed=1)[keep], atol=1e-3)
    assert table["key"].to_pylist() == [f"k{row}" for row in keep]
    assert len(table["image_norm"]) == 16
    failures = pq.read_table(tmp_path / "out/failures/failures_0000.parquet").to_pylist()
    assert failures == [
        {"key": "k3", "error": "invalid_embedding: the image embedding is all zeros"},
        {"key": "k7", "error": "invalid_embedding: the image embedding holds NaN"},
        {"key": "k11", "error": "invalid_embedding: the text embedding holds infinity"},
        {"key": "k15", "error": "invalid_embedding: the text embedding is null, or does not have 6 values"},
    ]


def test_a_missing_or_shorter_embedding_of_a_table_is_said_so(tmp_path: Path) -> None:
    vectors: list[list[float] | None] = [list(map(float, row)) for row in units(4, 6)]
    vectors[1], vectors[2] = None, [1.0]
    save_table(tmp_path / "in/a.parquet", image_embedding=vectors)
    with pytest.raises(InputError, match=r"row 1: the image embedding is null, or does not have 6 values; --skip-inv"):
        run(tmp_path / "in", tmp_path / "out")
    assert run(tmp_path / "in", tmp_path / "out", skip_invalid=True) == {"success": 2, "invalid_embedding": 2}
    errors = pq.read_table(tmp_path / "out/failures/failures_0000.parquet")["error"].to_pylist()
    assert errors == ["invalid_embedding: the image embedding is null, or does not have 6 values"] * 2


def test_a_table_whose_embeddings_are_all_null_has_only_invalid_rows(tmp_path: Path) -> None:
    save_table(tmp_path / "in/0.parquet", key=["a", "b"], image=units(2).tolist())
    save_table(tmp_path / "in/1.parquet", key=["c", "d", "e"], image=pa.nulls(3))
    with pytest.raises(InputError, match=r"1\.parquet, image, row 0: the image embedding is null, .* --skip-invalid"):
        run(tmp_path / "in", tmp_path / "out")
    assert run(tmp_path / "in", tmp_path / "new", skip_invalid=True) == {"success": 2, "invalid_embedding": 3}
    tables = [pq.read_table(tmp_path / f"new/metadata/metadata_000{shard}.parquet") for shard in range(2)]
    assert tables[0].column_names == tables[1].column_names == ["key", "image_norm"]
    failures = pq.read_table(tmp_path / "new/failures/failures_0001.parquet")
    assert failures["key"].to_pylist() == ["c", "d", "e"]


def test_many_blocks_are_one_shard_with_row_groups_of_one_size(tmp_path: Path) -> None:
    rows, dim = 9000, 1024  # a block has 1,024 rows
    save(tmp_path / "in/image.npy", units(rows, dim))
    save(tmp_path / "in/text.npy", units(rows, 8, seed=1))
    run(tmp_path / "in", tmp_path / "out")
    image, text, table = read(tmp_path / "out")
    np.testing.assert_allclose(image, units(rows, dim), atol=1e-3)
    np.testing.assert_allclose(text, units(rows, 8, seed=1), atol=1e-3)
    metadata = pq.ParquetFile(tmp_path / "out/metadata/metadata_0000.parquet").metadata
    assert [metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)] == [4096, 4096, 808]
    assert table["key"][-1].as_py() == "image_000008999"


def test_keys_of_two_tables_must_agree(tmp_path: Path) -> None:
    keys = [f"k{row}" for row in range(ROWS)]
    save_table(tmp_path / "in/images/a.parquet", uid=keys, image=units().tolist())
    save_table(tmp_path / "in/texts/a.parquet", uid=keys, text=units(seed=1).tolist())
    run(tmp_path / "in", tmp_path / "out")
    assert read(tmp_path / "out")[2]["key"].to_pylist() == keys
    keys[8], keys[9] = keys[9], keys[8]
    save_table(tmp_path / "in/texts/a.parquet", uid=keys, text=units(seed=1).tolist())
    with pytest.raises(InputError, match=r"texts/a\.parquet, row 8: uid is 'k9', and 'k8' in .*images/a\.parquet"):
        run(tmp_path / "in", tmp_path / "new")


def test_rows_without_a_key_agree_in_two_tables(tmp_path: Path) -> None:
    keys = [None if row == 3 else f"k{row}" for row in range(ROWS)]
    save_table(tmp_path / "in/images/a.parquet", uid=keys, image=units().tolist())
    save_table(tmp_path / "in/texts/a.parquet", uid=keys, text=units(seed=1).tolist())
    run(tmp_path / "in", tmp_path / "out")
    assert read(tmp_path / "out")[2]["key"][3].as_py() == "images/a_000000003"
    keys[3], keys[4] = keys[4], keys[3]
    save_table(tmp_path / "in/texts/a.parquet", uid=keys, text=units(seed=1).tolist())
    with pytest.raises(InputError, match=r"texts/a\.parquet, row 3: uid is 'k4', and None in .*images/a\.parquet"):
        run(tmp_path / "in", tmp_path / "new")


def test_norms_of_the_encoder_are_kept(tmp_path: Path) -> None:
    """A folder of `embed` without its manifest already has the norms before normalisation."""
    clip_retrieval(tmp_path / "in", 1)
    norms = pa.array(np.linspace(5, 9, ROWS), pa.float32())
    save_table(tmp_path / "in/metadata/metadata_0.parquet", key=list(range(ROWS)), image_norm=norms)
    run(tmp_path / "in", tmp_path / "out")
    table = read(tmp_path / "out")[2]
    assert table["image_norm"].combine_chunks().equals(norms)
    assert table["text_norm"].to_numpy() == pytest.approx(1, abs=1e-3)


def test_norms_are_summed_over_blocks() -> None:
    norms = Norms()
    assert norms.to_json() == {}
    norms.add(np.array([1, 3], np.float32))
    norms.add(np.array([0.5], np.float32))
    norms.add(np.empty(0, np.float32))
    assert norms.to_json() == {"low": 0.5, "high": 3.0, "total": 4.5, "rows": 3}
