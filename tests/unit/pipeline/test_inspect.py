"""A sound folder has no problems; damage is named by shard and row."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.errors import InputError
from priorkit.pipeline.inspect import inspect_folder

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
    data[600] ^= 1
    path.write_bytes(data)
    assert inspect_folder(str(images_folder)).problems == ["shard 00002: 00002.tar differs from what was committed"]
    path.unlink()
    assert inspect_folder(str(images_folder)).problems == ["shard 00002: 00002.tar is missing"]


def test_a_sound_folder_of_embeddings_has_no_problems(write_embeddings: WriteEmbeddings) -> None:
    steps: list[tuple[int, int]] = []
    found = inspect_folder(str(write_embeddings(SHARDS)), lambda done, total, note: steps.append((done, total)))
    assert (found.stage, found.shards, found.rows, found.problems) == ("embed", 3, 7, [])
    assert steps == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("name", ["img_emb/img_emb_0002.npy", "metadata/metadata_0000.parquet"])
def test_a_flipped_byte_is_named_by_shard_and_file(write_embeddings: WriteEmbeddings, name: str) -> None:
    folder = write_embeddings(SHARDS)
    data = bytearray((folder / name).read_bytes())
    data[-3] ^= 1
    (folder / name).write_bytes(data)
    shard = name.rpartition("_")[2].partition(".")[0]
    assert inspect_folder(str(folder)).problems == [f"shard {shard}: {name} differs from what was committed"]


@pytest.mark.parametrize(("value", "norm"), [(0.0, "0"), (np.nan, "nan"), (np.inf, "inf"), (1.0, "2.828")])
@pytest.mark.parametrize("kind", ["img", "text"])
def test_a_row_that_is_no_unit_vector_is_named_even_if_its_record_agrees(
    write_embeddings: WriteEmbeddings, replace_array: ReplaceArray, kind: str, value: float, norm: str
) -> None:
    folder = write_embeddings(SHARDS)
    name = f"{kind}_emb/{kind}_emb_0002.npy"
    values = np.load(folder / name)
    values[1] = value
    replace_array(folder, name, values)
    word = "image" if kind == "img" else "text"
    assert inspect_folder(str(folder)).problems == [f"shard 0002, row 1: {word} embedding has norm {norm}, not 1"]


def test_an_array_of_another_length_is_a_problem_not_a_crash(
    write_embeddings: WriteEmbeddings, replace_array: ReplaceArray
) -> None:
    folder = write_embeddings(SHARDS)
    replace_array(folder, "text_emb/text_emb_0002.npy", np.load(folder / "text_emb/text_emb_0002.npy")[:-1])
    try:
        problems = inspect_folder(str(folder)).problems
    except InputError as error:
        problems = [str(error)]
    assert len(problems) == 1
    assert "text_emb_0002.npy has 3 rows, its record says 4" in problems[0]


def write_tar(path: Path, images: int) -> None:
    with tarfile.open(path, "w") as tar:
        for number in range(images):
            info = tarfile.TarInfo(f"{number:04d}.jpg")
            info.size = 4
            tar.addfile(info, io.BytesIO(b"data"))


def test_images_of_img2dataset_are_counted_and_held_against_their_table(tmp_path: Path) -> None:
    for number, images in ((0, 3), (1, 2)):
        write_tar(tmp_path / f"0000{number}.tar", images)
        table = pa.table({"key": ["a", "b", "c", "d"], "status": ["success"] * 3 + ["failed_to_download"]})
        pq.write_table(table, tmp_path / f"0000{number}.parquet")
    found = inspect_folder(str(tmp_path))
    assert (found.stage, found.shards, found.rows) == ("images without a manifest", 2, 6)
    assert found.problems == ["shard 00001: 2 images, its parquet says 3"]
    assert found.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_a_cut_tar_is_a_problem_of_its_shard(tmp_path: Path) -> None:
    for number in range(2):
        write_tar(tmp_path / f"0000{number}.tar", 2)
        pq.write_table(pa.table({"status": ["success"] * 2}), tmp_path / f"0000{number}.parquet")
    (tmp_path / "00000.tar").write_bytes((tmp_path / "00000.tar").read_bytes()[:514])
    (problem,) = inspect_folder(str(tmp_path)).problems
    assert "00000.tar is damaged" in problem


def test_embeddings_of_clip_retrieval_are_counted_and_held_against_each_other(tmp_path: Path) -> None:
    for kind in ("img_emb", "text_emb"):
        (tmp_path / kind).mkdir()
        for number in range(2):
            rows = 4 if (kind, number) == ("text_emb", 1) else 5
            np.save(tmp_path / kind / f"{kind}_{number}.npy", np.ones((rows, 8), np.float16))
    found = inspect_folder(str(tmp_path))
    assert (found.stage, found.shards, found.rows) == ("embeddings without a manifest", 2, 10)
    assert found.problems == ["img_emb_1.npy: 5 image and 4 text embeddings"]


def test_what_cannot_be_inspected_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="to inspect here"):
            inspect_folder(str(folder))
    (tmp_path / "other").mkdir()
    np.save(tmp_path / "other/x.npy", np.ones(3))
    with pytest.raises(InputError, match="img_emb/ and text_emb/"):
        inspect_folder(str(tmp_path))
