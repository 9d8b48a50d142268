"""Numbers made from a seed and a name alone, so that weights and inputs need not be stored. Needs numpy only.

Every tensor has a Philox stream of its own, keyed by sha256 of seed and name, and is drawn by `Generator.random`: the
order of calls is free and no version of numpy changes the values.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


def stream(seed: int, name: str) -> np.random.Generator:
    """The generator that belongs to `name`."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def uniform(seed: int, name: str, shape: Sequence[int], *, mean: float = 0.0, std: float = 1.0) -> FloatArray:
    """Uniform values of the given mean and standard deviation."""
    centred = stream(seed, name).random(tuple(shape)) - 0.5
    return (mean + std * math.sqrt(12.0) * centred).astype(np.float32)


def unit_rows(seed: int, name: str, shape: Sequence[int]) -> FloatArray:
    """Rows of norm 1, as CLIP's embeddings."""
    rows = stream(seed, name).random(tuple(shape)) - 0.5
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def parameter(seed: int, name: str, shape: Sequence[int], *, position_bias: float = 0.5) -> FloatArray:
    """A parameter of DALLE2-pytorch's prior, by its name in the state dict: no switch may be without effect.

    Args:
        position_bias: standard deviation of the relative position biases.
    """
    last = name.rsplit(".", 1)[-1]
    if last == "g":  # a norm's gain: 0.7 to 1.3
        return uniform(seed, name, shape, mean=1.0, std=0.3 / math.sqrt(3.0))
    if last == "bias":
        return uniform(seed, name, shape, std=0.3)
    if "relative_attention_bias" in name:
        return uniform(seed, name, shape, std=position_bias)
    if last == "learned_query" or last.startswith("null_") or name.endswith("to_time_embeds.0.weight"):
        return uniform(seed, name, shape)
    if last == "weight" and len(shape) == 2:
        return uniform(seed, name, shape, std=1.0 / math.sqrt(shape[1]))
    raise ValueError(f"no rule draws the parameter {name} of shape {tuple(shape)}")
