"""Reading and writing of safetensors files one tensor at a time, so that memory holds the tensors only once."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import torch

from ...pipeline.contract.hashing import HashingFile, is_lfs_pointer
from ...pipeline.contract.storage import Store
from ...pipeline.errors import InputError
from ...pipeline.json_text import parse_json

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Dtypes that can be read, by their names in the file."""
_LENGTH_BYTES = 8
"""Size of the header's length at the start of the file, in bytes."""
_MAX_HEADER_BYTES = 100_000_000
"""Maximum size of a header, in bytes; safetensors itself has the same limit."""
_BLOCK_BYTES = 16 << 20
"""Number of bytes per read. Remote file systems keep a second copy of a block."""


class Entry(NamedTuple):
    """Place of a tensor in a safetensors file."""

    dtype: str
    """Name of the dtype, such as `F16`."""
    shape: tuple[int, ...]
    """Shape of the tensor."""
    start: int
    """Offset of the first byte, from the start of the file."""
    end: int
    """Offset after the last byte."""


class TensorFile:
    """Safetensors file in a local or remote folder. Creating an object reads only the file's header.

    Raises:
        FileNotFoundError: the file is missing.
        InputError: the file is damaged.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self.source = f"{store.url}/{name}"
        """File name for messages."""
        size = store.size(name)
        if size is None:
            raise FileNotFoundError(self.source)
        try:
            with store.open(name) as file:
                if is_lfs_pointer(file):
                    raise ValueError("it is a Git LFS pointer, run `git lfs pull`")
                length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
                if not 0 < length <= min(_MAX_HEADER_BYTES, size):
                    raise ValueError("it has no header")
                header = parse_json(file.read(length))
            self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
            """Texts that the writer stored with the tensors, by key."""
            first = _LENGTH_BYTES + length
            self.entries = {name: _entry(value, first, size) for name, value in header.items()}
            """Place of each tensor, by name."""
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{self.source} is not a whole safetensors file ({error}); copy it again") from None

    def read(self, names: list[str]) -> dict[str, torch.Tensor]:
        """Read some of the tensors as float32. Other float dtypes are converted one tensor at a time.

        Raises:
            InputError: a tensor has another dtype, contains NaN or infinity, or is cut off.
        """
        converted = [entry for entry in (self.entries[name] for name in names) if entry.dtype != "F32"]
        # one buffer for all tensors, because freed buffers of many sizes would leave gaps in memory
        buffer = torch.empty(max((entry.end - entry.start for entry in converted), default=0), dtype=torch.uint8)
        tensors = {}
        with self._store.open(self._name) as file:
            for name in sorted(names, key=lambda name: self.entries[name].start):
                tensors[name] = self._read_one(file, name, buffer)
        return tensors

    def _read_one(self, file: BinaryIO, name: str, buffer: torch.Tensor) -> torch.Tensor:
        entry = self.entries[name]
        if entry.dtype not in _DTYPES:
            raise InputError(f"{self.source}: {name} is {entry.dtype}, and {', '.join(_DTYPES)} can be read")
        size = entry.end - entry.start
        data = torch.empty(size, dtype=torch.uint8) if entry.dtype == "F32" else buffer[:size]
        file.seek(entry.start)
        view, done = data.numpy().data, 0
        while done < size:
            read = file.readinto(view[done : done + _BLOCK_BYTES])  # type: ignore[attr-defined]
            if not read:
                raise InputError(f"{self.source}: {name} is cut off; copy the file again")
            done += read
        value = data.view(_DTYPES[entry.dtype]).view(entry.shape).float()
        if value.numel() and not all(math.isfinite(limit) for limit in value.aminmax()):
            raise InputError(f"{self.source}: {name} contains NaN or infinity")
        return value


def _entry(described: Any, first: int, size: int) -> Entry:
    """Return the place of a tensor, from its description in the header.

    Args:
        first: offset of the first tensor's first byte, from the start of the file.
        size: size of the file in bytes.

    Raises:
        ValueError: the description contradicts itself or the file's size.
    """
    start, end = (first + int(offset) for offset in described["data_offsets"])
    shape = tuple(int(length) for length in described["shape"])
    width = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}.get(described["dtype"])
    if not first <= start <= end <= size or min(shape, default=0) < 0:
        raise ValueError("a tensor lies outside of it")
    if width is not None and end - start != width * math.prod(shape):
        raise ValueError("a tensor has another size than its shape")
    return Entry(described["dtype"], shape, start, end)


def write_tensors(
    file: HashingFile,
    tensors: Mapping[str, torch.Tensor],
    dtype: torch.dtype = torch.float32,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors to a safetensors file, one at a time. The bytes are those that safetensors itself writes.

    Args:
        file: file to write to, at its start.
        tensors: tensors by name, on any device.
        dtype: dtype that the tensors are converted to, `float32` or `float16`.
        metadata: texts to store with the tensors, by key; several keys are written in the given order.
    """
    name_of = {value: name for name, value in _DTYPES.items()}
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name in sorted(tensors):
        start, end = end, end + tensors[name].numel() * dtype.itemsize
        header[name] = {
            "dtype": name_of[dtype], "shape": list(tensors[name].shape), "data_offsets": [start, end],
        }  # fmt: skip
    described = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    described += b" " * (-len(described) % _LENGTH_BYTES)
    file.write(len(described).to_bytes(_LENGTH_BYTES, "little") + described)
    for name in sorted(tensors):
        value = tensors[name].detach().to("cpu", dtype).contiguous()
        file.write(value.view(-1).view(torch.uint8).numpy())
