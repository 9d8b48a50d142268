"""Rules for valid embeddings: types of arrays and norms of rows. Every reader uses these rules.

`inspect` reports invalid embeddings; opening, training, evaluating and sampling refuse them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

WORDS = {"img_emb": "image", "text_emb": "text"}
"""Word for each kind of embedding."""
EMBED_DTYPES = tuple(np.dtype(name) for name in ("float16", "float32", "float64"))
"""Types of stored embeddings that are accepted; either byte order is accepted if a whole file is read."""
UNIT_TOLERANCE = 2e-3
"""Largest difference between a norm and 1 at which a row is used as stored: float16 rounds norms by at most 5e-4."""
ROUNDED_TOLERANCE = 1e-2
"""Largest difference between a norm and 1 at which a row is normalised on reading: bfloat16 leaves 4e-3."""
ROUNDED = f"norms within {ROUNDED_TOLERANCE} of 1, as bfloat16 rounds them, and are normalised on reading"
"""Description of rows that are normalised on reading, to follow their number."""


def is_embed_dtype(dtype: np.dtype[Any]) -> bool:
    """Return whether embeddings of a type are accepted."""
    return dtype.newbyteorder("=") in EMBED_DTYPES


def embed_dtypes_named() -> str:
    """Return the names of the accepted types, for messages."""
    *rest, last = (dtype.name for dtype in EMBED_DTYPES)
    return f"{', '.join(rest)} or {last}"


def common_dtype(dtypes: Iterable[np.dtype[Any]]) -> np.dtype[Any]:
    """Return the type for reading several arrays: float16 if all are float16, otherwise float32."""
    half = np.dtype(np.float16)
    return half if all(dtype == half for dtype in dtypes) else np.dtype(np.float32)


def row_norms(embeds: np.ndarray) -> np.ndarray:
    """Return the norms `[n]` of rows `[n, D]`, both float32; infinite if a square overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.sqrt(np.einsum("nd,nd->n", embeds, embeds)))


@dataclass(frozen=True)
class NormVerdict:
    """Classification of `n` rows by their norms; a row in neither mask is used as stored."""

    bad: np.ndarray
    """`[n]` bool: rows that are refused, including rows with NaN or infinity."""
    rounded: np.ndarray
    """`[n]` bool: rows that are normalised on reading."""


def judge_norms(norms: np.ndarray) -> NormVerdict:
    """Classify rows by their norms `[n]`."""
    with np.errstate(invalid="ignore"):
        distance = np.abs(norms - np.float32(1))
        near = distance <= ROUNDED_TOLERANCE
        return NormVerdict(bad=~near, rounded=near & (distance > UNIT_TOLERANCE))


def normalise_rows(embeds: np.ndarray, norms: np.ndarray, chosen: np.ndarray) -> None:
    """Divide the chosen rows of `[n, D]` by their norms `[n]` in place; the other rows stay as they are."""
    rows = embeds[chosen].astype(np.float32) / norms[chosen][:, None]
    embeds[chosen] = rows.astype(embeds.dtype)


def row_fault(embed: np.ndarray, norm: float) -> str:
    """Return the reason why a row is refused."""
    if np.isnan(embed).any():
        return "holds NaN"
    if np.isinf(embed).any():
        return "holds infinity"
    return "is all zeros" if norm == 0 else f"has norm {norm:.4g}, not 1"
