"""Headers of embedding files, and rows that are read by range."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.contract.vectors.arrays import HEADER_BYTES, ArrayLayout, read_header, read_layout, read_rows
from priorkit.pipeline.errors import InputError


def save(folder: Path, values: np.ndarray, name: str = "a.npy") -> Store:
    np.save(folder / name, values)
    return Store(str(folder))


def test_the_header_of_an_array_says_rows_dimension_and_start(tmp_path: Path) -> None:
    store = save(tmp_path, np.zeros((5, 3), np.float16))
    header = read_header(store, "a.npy")
    assert (header.rows, header.embed_dim, header.size, header.columns) == (5, 3, HEADER_BYTES + 30, ())
    assert header.layout == ArrayLayout(5, (3,), np.dtype(np.float16), HEADER_BYTES)
    assert header.layout.row_bytes == 6
    assert bytes.fromhex(header.content) == (tmp_path / "a.npy").read_bytes()[:HEADER_BYTES]


@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_size_than_its_header_says_is_refused(tmp_path: Path, change: int) -> None:
    store = save(tmp_path, np.zeros((5, 3), np.float16))
    with pytest.raises(InputError, match=f"has {158 + change} bytes instead of 158"):
        read_header(store, "a.npy", 158 + change)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(3, np.float32), r"holds float32 of shape \[3\]"),
        (np.zeros((2, 3), np.int32), r"holds int32 of shape \[2, 3\]"),
        (np.zeros((2, 3, 4), np.float32), r"holds float32 of shape \[2, 3, 4\]"),
        (np.zeros((), np.float32), r"is not an array of numbers \(shape \(\)"),
        (np.asfortranarray(np.zeros((2, 3), np.float32)), "is in Fortran's order"),
        (np.zeros((2, 3), ">f4"), "in another machine's order of bytes"),
    ],
)
def test_other_arrays_than_embeddings_are_refused(tmp_path: Path, values: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_header(save(tmp_path, values), "a.npy")


@pytest.mark.parametrize("values", [np.asfortranarray(np.ones((2, 3), np.float32)), np.ones((2, 3), ">f4")])
def test_the_command_in_the_message_makes_the_array_readable(tmp_path: Path, values: np.ndarray) -> None:
    store = save(tmp_path, values)
    with pytest.raises(InputError) as error:
        read_header(store, "a.npy")
    command = str(error.value).split("`")[1].replace("python3", sys.executable, 1)
    subprocess.run(["bash", "-c", command], check=True)
    assert read_header(store, "a.npy").embed_dim == 3
    assert (np.load(tmp_path / "a.npy") == values).all()


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x02\x00{(", b"plain text"])
def test_a_file_that_is_no_array_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(InputError, match="is not an array of numbers"):
        read_header(Store(str(tmp_path)), "a.npy")


def test_rows_are_read_from_the_given_one_on(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float32).reshape(6, 2, 2)
    store = save(tmp_path, values)
    layout = read_layout(store, "a.npy")
    target = np.empty((3, 2, 2), np.float32)
    read_rows(store, "a.npy", layout, 2, target)
    assert (target == values[2:5]).all()
    read_rows(store, "a.npy", layout, 6, np.empty((0, 2, 2), np.float32))
    with pytest.raises(InputError, match="ends early, in row 6 of 6"):
        read_rows(store, "a.npy", layout, 4, target)


def test_the_header_of_metadata_is_its_footer(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["a", "b"], "caption": ["c", "d"]}), tmp_path / "m.parquet")
    header = read_header(Store(str(tmp_path)), "m.parquet")
    assert (header.rows, header.embed_dim, header.layout) == (2, 0, None)
    assert header.columns == ("key", "caption")
    content = (tmp_path / "m.parquet").read_bytes()
    assert header.size == len(content)
    assert content.endswith(bytes.fromhex(header.content))
    footer = int.from_bytes(content[-8:-4], "little")
    assert len(bytes.fromhex(header.content)) == footer + 8
    file = io.BytesIO(content[:-4])
    (tmp_path / "m.parquet").write_bytes(file.getvalue())
    with pytest.raises(InputError, match=r"m\.parquet is damaged"):
        read_header(Store(str(tmp_path)), "m.parquet")
