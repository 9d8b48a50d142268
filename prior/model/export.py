"""Export of sampled embeddings, batch by batch, to a `.npy` or `.safetensors` file."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...pipeline.contract.storage import atomic_file
from ...pipeline.errors import SettingsError

TENSOR_NAME = "image_embed"
"""Name of the tensor of samples in a `.safetensors` file."""
NEGATIVE_NAME = "negative_image_embed"
"""Name of the tensor of negative image embeddings."""
METADATA_KEY = "priorkit"
"""Key of the metadata in a `.safetensors` file."""
_BLOCK_ROWS = 1024
"""Number of negative embeddings that are written at once."""


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
def embeds_file(
    path: Path,
    rows: int,
    shape: Sequence[int],
    *,
    negative: torch.Tensor | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Iterator[Callable[[torch.Tensor], None]]:
    """Context manager that writes embeddings to a `.npy` or `.safetensors` file, batch by batch.

    The file contains one float32 array `[rows, *shape]`, and in a `.safetensors` file a second one of the same shape
    with the negative embedding in each row, if there is one. The context manager yields a function that appends a batch
    `[B, D]` of B embeddings. Append exactly `rows` embeddings in total. The file is moved to `path` at the end of the
    `with` block. If an exception is raised, no file is created or replaced.

    Args:
        path: file to write.
        rows: number of embeddings.
        shape: shape of an embedding in the file, such as `[D]` or `[1, D]`.
        negative: negative image embedding `[D]`; None for none. Only for `.safetensors`.
        metadata: JSON object to store in the header of a `.safetensors` file; None for none.

    Raises:
        SettingsError: the path is not a local path that ends in `.npy` or `.safetensors`, or is a folder.
    """
    check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with atomic_file(path, durable=False) as file:  # not a Store, because a Store restricts file names
        if path.suffix == ".npy":
            header = {"descr": "<f4", "fortran_order": False, "shape": (rows, *shape)}
            np.lib.format.write_array_header_1_0(file, header)
        else:
            names = [TENSOR_NAME] if negative is None else [TENSOR_NAME, NEGATIVE_NAME]
            file.write(_safetensors_header(names, [rows, *shape], metadata))

        def append(embeds: torch.Tensor) -> None:
            nonlocal written
            assert embeds.shape[1] == shape[-1]
            written += len(embeds)
            file.write(_to_bytes(embeds))

        yield append
        assert written == rows, (written, rows)
        if negative is not None and path.suffix != ".npy":
            for first in range(0, rows, _BLOCK_ROWS):
                file.write(_to_bytes(negative.expand(min(_BLOCK_ROWS, rows - first), -1)))


def _to_bytes(embeds: torch.Tensor) -> bytes:
    return embeds.to(torch.float32).cpu().numpy().astype("<f4", copy=False).tobytes()


def _safetensors_header(names: Sequence[str], shape: Sequence[int], metadata: Mapping[str, Any] | None) -> bytes:
    """Return the header of a safetensors file with float32 tensors of one shape.

    The header is an 8-byte length, followed by JSON padded to a multiple of 8 bytes.
    """
    size = 4 * int(np.prod(shape, dtype=np.int64))
    described: dict[str, Any] = {} if metadata is None else {"__metadata__": {METADATA_KEY: json.dumps(metadata)}}
    for number, name in enumerate(names):
        offsets = [number * size, (number + 1) * size]
        described[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": offsets}
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
