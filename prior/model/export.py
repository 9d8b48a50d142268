"""Export of sampled embeddings, batch by batch, to a `.npy` or `.safetensors` file."""

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
"""Name of the single tensor in a `.safetensors` file."""


def check_output(path: Path) -> None:
    """Check that a path is valid for an exported file of embeddings. Write permission is not checked.

    Raises:
        SettingsError: the path is not local, does not end in `.npy` or `.safetensors`, or is an existing folder.
    """
    if "://" in str(path) or ":/" in str(path)[2:]:
        raise SettingsError(f"--output {path}: give a local file; copy it from there")
    if path.suffix not in (".npy", ".safetensors"):
        raise SettingsError(f"--output {path}: end it with .npy or .safetensors")
    if path.is_dir():
        raise SettingsError(f"--output {path}: is a folder")


@contextlib.contextmanager
def embeds_file(path: Path, rows: int, embed_dim: int) -> Iterator[Callable[[torch.Tensor], None]]:
    """Context manager that writes embeddings to a `.npy` or `.safetensors` file, batch by batch.

    The file contains one float32 array `[rows, embed_dim]`. The context manager yields a function that appends a batch
    `[B, embed_dim]` of B embeddings. Append exactly `rows` embeddings in total. The file is moved to `path` at the end
    of the `with` block. If an exception is raised, no file is created or replaced.

    Raises:
        SettingsError: the path is not a local path that ends in `.npy` or `.safetensors`, or is a folder.
    """
    check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with atomic_file(path, durable=False) as file:  # not a Store, because a Store restricts file names
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
    """Return the header of a safetensors file with one tensor.

    The header is an 8-byte length, followed by JSON padded to a multiple of 8 bytes.
    """
    tensor = {"dtype": "F32", "shape": [rows, embed_dim], "data_offsets": [0, 4 * rows * embed_dim]}
    described = json.dumps({TENSOR_NAME: tensor}).encode()
    described += b" " * (-len(described) % 8)
    return len(described).to_bytes(8, "little") + described
