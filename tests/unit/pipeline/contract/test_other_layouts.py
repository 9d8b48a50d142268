"""Messages about folders of embeddings in unsupported layouts, from `inspect` and on opening."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.errors import InputError
from priorkit.pipeline.inspect.folder import inspect_folder
from priorkit.pipeline.read.dataset import read_embeddings

VECTORS = np.eye(4, dtype=np.float32)


def datacomp(folder: Path) -> None:
    np.savez(folder / "00ab.npz", b32_img=VECTORS, b32_txt=VECTORS, l14_img=VECTORS, l14_txt=VECTORS)
    pq.write_table(pa.table({"uid": ["a"] * 4}), folder / "00ab.parquet")


def archives(folder: Path) -> None:
    np.savez(folder / "x.npz", one=VECTORS)


def damaged_archive(folder: Path) -> None:
    (folder / "x.npz").write_bytes(b"no archive")


def in_parquet(folder: Path) -> None:
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(VECTORS.ravel()), 4)
    table = {"caption": ["a"] * 4, "image_embedding": fixed, "text_embedding": VECTORS.tolist()}
    pq.write_table(pa.table(table), folder / "train-00000-of-00001.parquet")


def several(folder: Path) -> None:
    for part in ("part_0", "deep/part_1"):
        (folder / part / "img_emb").mkdir(parents=True)
        np.save(folder / part / "img_emb/img_emb_0.npy", VECTORS)


def one_below(folder: Path) -> None:
    (folder / "out/text_emb").mkdir(parents=True)
    np.save(folder / "out/text_emb/text_emb_0.npy", VECTORS)


def inside(folder: Path) -> None:
    np.save(folder / "text_emb_0007.npy", VECTORS)


def arrays(folder: Path) -> None:
    np.save(folder / "embeddings.npy", VECTORS)


def tensors(folder: Path) -> None:
    (folder / "a.safetensors").write_bytes(b"")


CASES: dict[Callable[[Path], None], str] = {
    datacomp: r"holds DataComp's \.npz files, .*l14_img, l14_txt\); .* --source l14_txt --target l14_img --clip",
    archives: r"holds \.npz files, which are not read directly \(x\.npz has one\); .*priorkit adopt",
    damaged_archive: r"holds \.npz files, which are not read directly \(x\.npz has no arrays\)",
    in_parquet: r"holds embeddings in columns of parquet, .*image_embedding, text_embedding\); convert them with",
    several: r"holds 2 folders of embeddings \(deep/part_1, part_0\); name one of them, or join all with `prior",
    one_below: "holds a folder of embeddings, out; name that one",
    inside: "holds the files of text_emb alone; name the folder above it",
    arrays: r"holds arrays of other names \(embeddings\.npy\); take them over with `priorkit adopt",
    tensors: r"holds files that are not read as embeddings \(a\.safetensors\)",
}


@pytest.mark.parametrize("write", CASES, ids=lambda write: write.__name__)
@pytest.mark.parametrize("read", [inspect_folder, read_embeddings])
def test_another_layout_is_described(
    write: Callable[[Path], None], read: Callable[[str], object], tmp_path: Path
) -> None:
    write(tmp_path)
    with pytest.raises(InputError, match=CASES[write]):
        read(str(tmp_path))


def test_the_folder_in_the_command_is_quoted_for_a_shell(tmp_path: Path) -> None:
    (tmp_path / "my data").mkdir()
    arrays(tmp_path / "my data")
    with pytest.raises(InputError, match=r"`priorkit adopt '/.*/my data' NEW_FOLDER "):
        read_embeddings(str(tmp_path / "my data"))


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", VECTORS)
    with pytest.raises(InputError, match="is a file; name the folder"):
        read_embeddings(str(tmp_path / "x.npy"))
