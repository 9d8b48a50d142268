"""Safetensors files that are read and written one tensor at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import InputError
from priorkit.prior.model.tensor_file import TensorFile, write_tensors

TENSORS = {"b.weight": torch.arange(6.0).view(2, 3), "a": torch.tensor(1.5), "é": torch.zeros(0, 4), "b": torch.ones(5)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_the_bytes_are_those_of_safetensors(
    dtype: torch.dtype, metadata: dict[str, str] | None, tmp_path: Path
) -> None:
    with Store(str(tmp_path)).create("a.safetensors") as file:
        write_tensors(file, TENSORS, dtype, metadata)
    expected = safetensors.torch.save({name: value.to(dtype) for name, value in TENSORS.items()}, metadata)
    assert (tmp_path / "a.safetensors").read_bytes() == expected
    read = TensorFile(Store(str(tmp_path)), "a.safetensors")
    assert read.metadata == (metadata or {})
    tensors = read.read(list(read.entries))
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(value, TENSORS[name]) and value.dtype == torch.float32 for name, value in tensors.items())


def test_a_part_of_a_tensor_is_written_as_it_is(tmp_path: Path) -> None:
    with Store(str(tmp_path)).create("a.safetensors") as file:
        write_tensors(file, {"a": torch.arange(6.0).view(2, 3).T[1:]})
    assert safetensors.torch.load_file(tmp_path / "a.safetensors")["a"].tolist() == [[1.0, 4.0], [2.0, 5.0]]


def described(dtype: str, shape: list[int], offsets: list[int]) -> bytes:
    header = json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", "it has no header"),
        (b"\x00" * 20, "it has no header"),
        (b"\xff" * 20, "it has no header"),
        ((5).to_bytes(8, "little") + b"[1,2]", "is not a whole safetensors file"),
        ((5).to_bytes(8, "little") + b"hello", "is not a whole safetensors file"),
        (described("F32", [2], [0, 8]) + b"1234", "a tensor lies outside of it"),
        (described("F32", [2], [-8, 0]), "a tensor lies outside of it"),
        (described("F32", [3], [0, 8]) + b"12345678", "another size than its shape"),
        (described("F32", [-1], [0, 8]) + b"12345678", "a tensor lies outside of it"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7\nsize 4\n", "a Git LFS pointer"),
    ],
)
def test_damage_is_named(data: bytes, named: str, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=named):
        TensorFile(Store(str(tmp_path)), "a.safetensors")


def test_a_missing_file_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        TensorFile(Store(str(tmp_path)), "a.safetensors")
