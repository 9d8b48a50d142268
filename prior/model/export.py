"""Export of sampled embeddings to `.npy` and `.safetensors` files, part by part."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from ...pipeline.contract.storage import atomic_file
from ...pipeline.errors import SettingsError

TENSOR_NAME = "image_embed"
"""Name of the only tensor of a `.safetensors` file."""


def check_output(path: Path) -> None:
    """Raise SettingsError if embeddings cannot be written to a file of this name."""
    if "://" in str(path) or ":/" in str(path)[2:]:
        raise SettingsError(f"--output {path}: give a local file; copy it from there")
    if path.suffix not in (".npy", ".safetensors"):
        raise SettingsError(f"--output {path}: end it with .npy or .safetensors")
    if path.is_dir():
        raise SettingsError(f"--output {path}: is a folder")


@contextlib.contextmanager
def embeds_file(path: Path, rows: int, embed_dim: int) -> Iterator[Callable[[torch.Tensor], None]]:
    """Open a new `.npy` or `.safetensors` file of `[rows, D]` float32; yield a function that appends `[B, D]`.

    The file appears when all rows are written. After an exception there is none.

    Raises:
        SettingsError: the file has another ending.
    """
    check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with atomic_file(path, durable=False) as file:  # not through a Store, which restricts file names
        if path.suffix == ".npy":
            header = {"descr": "<f4", "fortran_order": False, "shape": (rows, embed_dim)}
            np.lib.format.write_array_header_1_0(file, header)
        else:
            file.write(_safetensors_header(rows, embed_dim))

        def append(embeds: torch.Tensor) -> None:
            nonlocal written
            assert embeds.shape[1] == embed_dim
            written += len(embeds)
            file.write(embeds.to(torch.float32).cpu().numpy().astype("<f4", copy=False).tobytes())

        yield append
        assert written == rows, (written, rows)


def _safetensors_header(rows: int, embed_dim: int) -> bytes:
    """Return the header of a file with one tensor: its length in 8 bytes, and JSON padded to a multiple of 8."""
    tensor = {"dtype": "F32", "shape": [rows, embed_dim], "data_offsets": [0, 4 * rows * embed_dim]}
    described = json.dumps({TENSOR_NAME: tensor}).encode()
    described += b" " * (-len(described) % 8)
    return len(described).to_bytes(8, "little") + described
