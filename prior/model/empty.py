"""Use of a CLIP model's outputs for empty inputs by a prior: dropped texts, and negative image embeddings."""

from __future__ import annotations

import torch

from ...pipeline.contract.empty_inputs import EmptyInputs
from ..network.interface import Network

PREFIX = "empty."
"""Prefix of the names of these tensors in `model.safetensors`."""


def set_empty_text(network: Network, empty: EmptyInputs | None) -> None:
    """Give a network the encoding of the empty text, if it is known.

    Raises:
        ValueError: the sizes do not fit the network.
    """
    if empty is not None and empty.token_states is not None:
        network.set_empty_text(torch.from_numpy(empty.text_embed), torch.from_numpy(empty.token_states))


def empty_tensors(empty: EmptyInputs | None) -> dict[str, torch.Tensor]:
    """Return the arrays as named tensors for `model.safetensors`; an empty dictionary if they are unknown."""
    return {} if empty is None else {f"{PREFIX}{name}": torch.from_numpy(v) for name, v in empty.tensors().items()}


def take_empty_tensors(tensors: dict[str, torch.Tensor], source: str) -> EmptyInputs | None:
    """Remove the tensors of empty inputs from the tensors of a prior, and return them; None if there are none.

    Args:
        tensors: tensors of `model.safetensors`, by name.
        source: file that they come from, for the error message.

    Raises:
        InputError: a tensor is missing or has the wrong dtype or number of dimensions.
    """
    names = [name for name in tensors if name.startswith(PREFIX)]
    given = {name.removeprefix(PREFIX): tensors.pop(name).numpy() for name in names}
    return EmptyInputs.from_tensors(given, source) if given else None
