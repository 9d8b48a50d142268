"""One embedding shard: rows by range, content groups, metadata, and faults that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.contract.vectors.arrays import read_header
from priorkit.pipeline.errors import InputError
from priorkit.pipeline.read import shards
from priorkit.pipeline.read.shards import EmbeddingShard

ROWS = np.arange(24, dtype=np.float16).reshape(6, 4)


def make_shard(
    folder: Path, metadata: dict[str, list[Any]] | None = None, rows: int = 6, **known: Any
) -> EmbeddingShard:
    np.save(folder / "img.npy", ROWS)
    files = {"img_emb": "img.npy"}
    if metadata is not None:
        pq.write_table(pa.table(metadata), folder / "metadata.parquet")
        files["metadata"] = "metadata.parquet"
    return EmbeddingShard(Store(str(folder)), rows, "the test", files, **known)


def groups(shard: EmbeddingShard) -> list[bytes]:
    return [group for part in shard.content_groups() for group in part]


def test_rows_are_read_by_range(tmp_path: Path) -> None:
    shard = make_shard(tmp_path)
    assert np.array_equal(shard.read("img_emb", 2, 3), ROWS[2:5])
    assert np.array_equal(shard.array("img_emb"), ROWS)
    assert (shard.has("img_emb"), shard.has("text_emb")) == (True, False)
    assert shard.title("img_emb") == f"{tmp_path}/img.npy"


def test_another_number_of_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"img\.npy has 6 rows, the test says 5"):
        make_shard(tmp_path, rows=5).read("img_emb", 0, 1)


def test_another_width_than_that_of_the_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds embeddings of 4 in float16, the manifest says 8 in float16"):
        make_shard(tmp_path, dims={"img_emb": 8}).read("img_emb", 0, 1)


def test_only_known_layouts_are_converted(tmp_path: Path) -> None:
    target = np.empty((2, 4), np.float32)
    with pytest.raises(InputError, match="embed that shard again"):
        make_shard(tmp_path).read_into("img_emb", 1, target)
    layout = read_header(Store(str(tmp_path)), "img.npy").layout
    make_shard(tmp_path, layouts={"img_emb": layout}).read_into("img_emb", 1, target)
    assert np.array_equal(target, ROWS[1:3])


@pytest.mark.parametrize("block_rows", [1, 4, 100])
def test_a_content_group_is_the_hash_or_the_url_or_the_embedding(
    tmp_path: Path, block_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "READ_BLOCK_ROWS", block_rows)
    columns = {"sha256": ["h0", None, None, "h3", "", None], "url": ["u0", "u1", None, "u3", "u4", None]}
    expected = [b"h0", b"u1", ROWS[2].tobytes(), b"h3", b"u4", ROWS[5].tobytes()]
    assert groups(make_shard(tmp_path, columns)) == expected
    assert groups(make_shard(tmp_path, {"caption": ["a"] * 6})) == [row.tobytes() for row in ROWS]
    assert groups(make_shard(tmp_path)) == [row.tobytes() for row in ROWS]


def test_image_path_is_the_key_where_there_is_no_other(tmp_path: Path) -> None:
    shard = make_shard(tmp_path, {"image_path": list("abcdef"), "width": [1] * 6})
    assert shard.metadata(["key", "width"]).to_pydict() == {"key": list("abcdef"), "width": [1] * 6}
    both = make_shard(tmp_path, {"image_path": list("abcdef"), "key": list("uvwxyz")})
    assert both.metadata(["key"]).column("key").to_pylist() == list("uvwxyz")


def test_keys_and_captions_are_text(tmp_path: Path) -> None:
    table = make_shard(tmp_path, {"key": [1, 2, 3, 4, 5, None], "width": [7] * 6}).metadata(["key", "width"])
    assert table.to_pydict() == {"key": ["1", "2", "3", "4", "5", None], "width": [7] * 6}


def test_a_shard_without_metadata_has_no_keys(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no metadata: its rows have neither keys nor captions"):
        make_shard(tmp_path).metadata(["key"])


def test_token_states_are_cut_and_padded(tmp_path: Path) -> None:
    np.save(tmp_path / "offsets.npy", np.array([0, 1, 4]))
    np.save(tmp_path / "states.npy", np.arange(8, dtype=np.float16).reshape(4, 2))
    files = {"offsets": "offsets.npy", "token_states": "states.npy"}
    shard = EmbeddingShard(Store(str(tmp_path)), 2, "the test", files)
    states = np.zeros((3, 2, 2), np.float32)
    shard.fill_token_states(states, np.array([2, 0]), np.array([0, 1]))
    assert states.tolist() == [[[2, 3], [4, 5]], [[0, 0], [0, 0]], [[0, 1], [0, 0]]]
