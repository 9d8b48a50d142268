"""A sound folder has no problems; damage is named by shard and row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from priorkit.pipeline.errors import InputError
from priorkit.pipeline.inspect.folder import inspect_folder

WriteEmbeddings = Callable[..., Path]
ReplaceArray = Callable[[Path, str, np.ndarray], None]
SHARDS = [["a", "b", "c"], [], ["d", "e", "f", "g"]]


def test_a_sound_folder_of_images_has_no_problems(images_folder: Path, url_list: Any) -> None:
    found = inspect_folder(str(images_folder))
    assert (found.stage, found.shards, found.rows) == ("download", 4, 63)
    assert found.counts == {"success": 60, "http_4xx": 1, "not_image": 1, "refused": 1}
    assert found.bytes == sum(p.stat().st_size for p in images_folder.iterdir() if p.suffix in (".tar", ".parquet"))
    assert found.problems == []
    path = images_folder / "00002.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1  # in an image
    path.write_bytes(data)
    assert inspect_folder(str(images_folder)).problems == ["shard 00002: 00002.tar differs from what was committed"]
    path.unlink()
    assert inspect_folder(str(images_folder)).problems == ["shard 00002: 00002.tar is missing"]


def test_a_sound_folder_of_embeddings_has_no_problems(write_embeddings: WriteEmbeddings) -> None:
    steps: list[tuple[int, int]] = []
    found = inspect_folder(str(write_embeddings(SHARDS)), lambda done, total, note: steps.append((done, total)))
    assert (found.stage, found.shards, found.rows, found.problems) == ("embed", 3, 7, [])
    assert steps == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert found.looked_at["rows of metadata"] == 7


@pytest.mark.parametrize("name", ["img_emb/img_emb_0002.npy", "metadata/metadata_0000.parquet"])
def test_a_flipped_byte_is_named_by_shard_and_file(write_embeddings: WriteEmbeddings, name: str) -> None:
    folder = write_embeddings(SHARDS)
    data = bytearray((folder / name).read_bytes())
    data[-3] ^= 1
    (folder / name).write_bytes(data)
    shard = name.rpartition("_")[2].partition(".")[0]
    assert inspect_folder(str(folder)).problems == [f"shard {shard}: {name} differs from what was committed"]


@pytest.mark.parametrize(
    ("value", "fault"),
    [(0.0, "is all zeros"), (np.nan, "holds NaN"), (np.inf, "holds infinity"), (1.0, "has norm 2.828, not 1")],
)
@pytest.mark.parametrize("kind", ["img", "text"])
def test_a_row_that_is_not_a_unit_vector_is_named_even_if_its_record_agrees(
    write_embeddings: WriteEmbeddings, replace_array: ReplaceArray, kind: str, value: float, fault: str
) -> None:
    folder = write_embeddings(SHARDS)
    name = f"{kind}_emb/{kind}_emb_0002.npy"
    values = np.load(folder / name)
    values[1] = value
    replace_array(folder, name, values)
    word = "image" if kind == "img" else "text"
    assert inspect_folder(str(folder)).problems == [f"shard 0002, row 1: {word} embedding {fault}"]


def test_faults_inside_a_file_that_differs_are_notes(write_embeddings: WriteEmbeddings) -> None:
    """The file is counted as damaged once; notes name the rows."""
    folder = write_embeddings(SHARDS)
    name = "img_emb/img_emb_0002.npy"
    values = np.load(folder / name)
    values[1] = 0
    np.save(folder / name, values)
    found = inspect_folder(str(folder))
    assert found.problems == [f"shard 0002: {name} differs from what was committed"]
    assert "shard 0002, row 1: image embedding is all zeros" in found.notes


def test_an_array_of_another_length_is_a_problem_not_a_crash(
    write_embeddings: WriteEmbeddings, replace_array: ReplaceArray
) -> None:
    folder = write_embeddings(SHARDS)
    replace_array(folder, "text_emb/text_emb_0002.npy", np.load(folder / "text_emb/text_emb_0002.npy")[:-1])
    problems = inspect_folder(str(folder)).problems
    assert problems == ["shard 0002: text_emb/text_emb_0002.npy has 3 rows, its record says 4"]


def test_a_folder_that_cannot_be_inspected_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="to inspect here"):
            inspect_folder(str(folder))
    (tmp_path / "list.txt").write_text("no folder")
    with pytest.raises(InputError, match=r"list\.txt is a file; name the folder"):
        inspect_folder(str(tmp_path / "list.txt"))
    (tmp_path / "other").mkdir()
    np.save(tmp_path / "other/x.npy", np.ones(3))
    with pytest.raises(InputError, match=r"holds arrays of other names \(other/x\.npy\); take them over with"):
        inspect_folder(str(tmp_path))
