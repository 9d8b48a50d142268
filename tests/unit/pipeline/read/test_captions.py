"""Captions by range, for any size of row groups."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import InputError
from priorkit.pipeline.read import captions
from priorkit.pipeline.read.captions import CaptionReader
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.pipeline.read.shards import EmbeddingShard

ROWS = 30_000
CAPTIONS = [None if row % 1000 == 7 else f"caption {row} \u00e9" for row in range(ROWS)]
RANGES = [(0, 1), (0, 4096), (4095, 2), (20_000, 9_999), (29_999, 1), (0, ROWS)]


def write(folder: Path, group_rows: int, kind: pa.DataType | None = None) -> tuple[Store, EmbeddingShard]:
    (folder / "metadata").mkdir(parents=True)
    table = pa.table({"key": [str(row) for row in range(ROWS)], "caption": pa.array(CAPTIONS, kind or pa.string())})
    pq.write_table(table, folder / "metadata/metadata_07.parquet", row_group_size=group_rows)
    store = Store(str(folder))
    files = {"img_emb": "img_emb/img_emb_07.npy", "metadata": "metadata/metadata_07.parquet"}
    return store, EmbeddingShard(store, ROWS, "the test", files)


def require_captions(reader: CaptionReader, shard: EmbeddingShard) -> None:
    for first, count in RANGES:
        found = reader.read(shard, first, count).to_pylist()
        assert found == [caption or "" for caption in CAPTIONS[first : first + count]]


@pytest.mark.parametrize("group_rows", [1000, 4096, ROWS])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_captions_of_any_range_are_read(tmp_path: Path, group_rows: int, kind: pa.DataType) -> None:
    store, shard = write(tmp_path, group_rows, kind)
    require_captions(CaptionReader(store, "mark"), shard)
    copy = tmp_path / "selections/captions_mark/captions_07.parquet"
    assert copy.exists() == (group_rows == ROWS)
    if copy.exists():
        metadata = pq.read_metadata(copy)
        assert (metadata.num_rows, metadata.schema.names) == (ROWS, ["caption"])
        assert max(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)) <= 4096


def test_a_copy_is_made_once_and_again_if_it_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, shard = write(tmp_path, ROWS)
    require_captions(CaptionReader(store, "mark"), shard)
    made: list[str] = []
    original = captions._copy
    monkeypatch.setattr(captions, "_copy", lambda *arguments: (made.append(arguments[2]), original(*arguments)))
    require_captions(CaptionReader(store, "mark"), shard)
    assert made == []
    copy = tmp_path / "selections/captions_mark/captions_07.parquet"
    copy.write_bytes(copy.read_bytes()[:-5])
    require_captions(CaptionReader(store, "mark"), shard)
    assert len(made) == 1


def test_copies_of_a_read_only_folder_are_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, shard = write(tmp_path / "data", ROWS)
    (tmp_path / "data/selections").write_bytes(b"in the way of the folder")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    reader = CaptionReader(store, "mark")
    require_captions(reader, shard)
    assert len(list((tmp_path / "temporary").rglob("*.parquet"))) == 1
    del reader
    assert list((tmp_path / "temporary").iterdir()) == []


def test_metadata_without_captions_is_refused(write_embeddings: Callable[..., Path]) -> None:
    folder = write_embeddings([["a", "b"]])
    dataset = EmbeddingDataset(str(folder))
    pq.write_table(pa.table({"key": ["a", "b"]}), folder / "metadata/metadata_0000.parquet")
    with pytest.raises(InputError, match=r"metadata_0000\.parquet has no column 'caption'"):
        CaptionReader(dataset.store, "mark").read(dataset.shards[0], 0, 1)
