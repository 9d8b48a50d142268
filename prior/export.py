"""Sampled embeddings -> files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from ..pipeline.errors import SettingsError
from ..pipeline.storage import TEMPORARY_SUFFIX

TENSOR_NAME = "image_embed"


def embeds_writer(path: Path) -> Callable[[torch.Tensor], None]:
    """A function that writes embeddings `[B, D]` to a `.npy` or `.safetensors` file, atomically.

    Raises:
        SettingsError: the ending is neither.
    """
    if path.suffix not in (".npy", ".safetensors"):
        raise SettingsError(f"--output {path}: end it with .npy or .safetensors")

    def write(embeds: torch.Tensor) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + TEMPORARY_SUFFIX)  # not through a Store: any file name will do here
        with temporary.open("wb") as file:
            if path.suffix == ".npy":
                np.save(file, embeds.numpy())
            else:
                file.write(safetensors.torch.save({TENSOR_NAME: embeds.contiguous()}))
        temporary.replace(path)

    return write
