"""Outputs of a CLIP model for empty inputs, and the file of an embeddings folder that stores them.

Decoders and samplers use them as the negative condition. The manifest's `about` section records the size and the hash
of the file. A file that is not recorded there is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import safetensors.numpy

from ..errors import InputError
from .hashing import FileRecord, hash_bytes
from .storage import Store

FILE_NAME = "empty_inputs.safetensors"
"""Name of the file in an embeddings folder."""
ABOUT_KEY = "empty_inputs"
"""Entry of the manifest's `about` section with the size and the SHA-256 of the file."""
_DIMENSIONS = {"image_embed": 1, "text_embed": 1, "token_states": 2}
"""Number of dimensions of each tensor, keyed by name."""


@dataclass(frozen=True, eq=False)
class EmptyInputs:
    """Outputs of a CLIP model for an image of zeros and for the empty text. All arrays are float32.

    In the array shapes, D and S are the sizes of image and text embeddings, T is the number of tokens of the empty
    text, and W is the width of a token state.
    """

    image_embed: np.ndarray
    """`[D]` embedding of an image whose pixels are zero after preprocessing, not normalised."""
    text_embed: np.ndarray
    """`[S]` embedding of the empty text, not normalised."""
    token_states: np.ndarray | None
    """`[T, W]` token states of the empty text after the final norm, from begin-of-text to end-of-text. They include all
    positions if the text tower has no end-of-text token. None if the text tower provides no token states."""

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the arrays by name, without `token_states` if they are None."""
        named = {name: getattr(self, name) for name in _DIMENSIONS}
        return {name: value for name, value in named.items() if value is not None}

    @staticmethod
    def from_tensors(tensors: Mapping[str, np.ndarray], source: str) -> EmptyInputs:
        """Check arrays and return them as `EmptyInputs`.

        Args:
            tensors: arrays by name; other names are ignored.
            source: file or model that the arrays come from, for the error message.

        Raises:
            InputError: an array is missing, has the wrong dtype or number of dimensions, or contains NaN or infinity.
        """
        for name, dimensions in _DIMENSIONS.items():
            values = tensors.get(name)
            if values is None and name == "token_states":
                continue
            if values is None or values.dtype != np.float32 or values.ndim != dimensions or not values.size:
                shape = "nothing" if values is None else f"{list(values.shape)} {values.dtype}"
                raise InputError(f"{source}: {name} has {shape} instead of {dimensions} dimensions of float32")
            if not np.isfinite(values).all():
                raise InputError(
                    f"{source}: {name} of the empty input contains NaN or infinity; try embed.dtype=float32"
                )
        return EmptyInputs(tensors["image_embed"], tensors["text_embed"], tensors.get("token_states"))


def write_empty_inputs(store: Store, empty: EmptyInputs) -> dict[str, Any]:
    """Write the file atomically, and return the entry that records it in the manifest's `about` section."""
    with store.create(FILE_NAME) as file:
        file.write(safetensors.numpy.save(empty.tensors()))
        return {ABOUT_KEY: asdict(file.record())}


def has_empty_inputs(store: Store, about: Mapping[str, Any]) -> bool:
    """Return True if the `about` section of the folder's manifest records the file, and it has the recorded size."""
    record = _record(about)
    return record is not None and store.size(FILE_NAME) == record.bytes


def read_empty_inputs(store: Store, about: Mapping[str, Any]) -> EmptyInputs | None:
    """Read the file of an embeddings folder.

    Args:
        store: embeddings folder.
        about: section `about` of its manifest; empty without a manifest.

    Returns:
        Content of the file; None if the manifest does not record the file.

    Raises:
        InputError: the file is missing, or its content differs from the record.
    """
    if (record := _record(about)) is None:
        return None
    source = f"{store.url}/{FILE_NAME}"
    try:
        with store.open(FILE_NAME) as file:
            data = file.read()
    except FileNotFoundError:
        raise InputError(f"{source} is missing; run `priorkit embed` again to restore it") from None
    if FileRecord(len(data), hash_bytes(data)) != record:
        raise InputError(f"{source} differs from the manifest; remove it, and run `priorkit embed` again to restore it")
    return EmptyInputs.from_tensors(safetensors.numpy.load(data), source)


def _record(about: Mapping[str, Any]) -> FileRecord | None:
    """Return the recorded size and hash of the file; None if there are none, or they are damaged."""
    entry = about.get(ABOUT_KEY)
    if not isinstance(entry, Mapping) or not {"bytes", "sha256"} <= entry.keys():
        return None
    return FileRecord(entry["bytes"], entry["sha256"])
