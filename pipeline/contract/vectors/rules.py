"""Rules, shared by all readers, for the array dtypes and row norms of valid embeddings.

The `inspect` command reports invalid embeddings. When a folder is opened, and in training, evaluation and
sampling, invalid embeddings cause an error.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

WORDS = {"img_emb": "image", "text_emb": "text"}
"""Name of each kind of embedding in messages and settings, keyed by kind of file."""
EMBED_DTYPES = tuple(np.dtype(name) for name in ("float16", "float32", "float64"))
"""Dtypes accepted for stored embeddings. `is_embed_dtype` ignores the byte order; `arrays.read_layout` checks it."""
UNIT_TOLERANCE = 2e-3
"""Tolerance for unit norms. A row whose norm deviates from 1 by at most this much is used as stored. Rounding to
float16 causes a deviation of at most 5e-4."""
ROUNDED_TOLERANCE = 1e-2
"""Tolerance for rounded norms. A row whose norm deviates from 1 by more than this is refused. A row that deviates by
more than `UNIT_TOLERANCE`, but at most by this much, is normalised when read. Rounding to bfloat16 causes a deviation
of at most 4e-3."""
ROUNDED = f"norms within {ROUNDED_TOLERANCE} of 1, as bfloat16 rounds them, and are normalised on reading"
"""End of a message about embeddings that are normalised when read, after words such as `12 image embeddings have`."""


def is_embed_dtype(dtype: np.dtype[Any]) -> bool:
    """Return True if embeddings with this dtype are accepted, ignoring its byte order."""
    return dtype.newbyteorder("=") in EMBED_DTYPES


def embed_dtypes_named() -> str:
    """Return the names of the accepted dtypes, for messages."""
    *rest, last = (dtype.name for dtype in EMBED_DTYPES)
    return f"{', '.join(rest)} or {last}"


def common_dtype(dtypes: Iterable[np.dtype[Any]]) -> np.dtype[Any]:
    """Return the dtype in which arrays with these dtypes are read: float16 if all are float16, otherwise float32."""
    half = np.dtype(np.float16)
    return half if all(dtype == half for dtype in dtypes) else np.dtype(np.float32)


def row_norms(embeds: np.ndarray) -> np.ndarray:
    """Return the L2 norm of each row.

    Args:
        embeds: float32 array `[n, D]`: n embeddings of dimension D, one per row.

    Returns:
        Float32 array `[n]`: the norm of each embedding. A norm is infinite if the sum of the squares overflows.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.sqrt(np.einsum("nd,nd->n", embeds, embeds)))


@dataclass(frozen=True)
class NormVerdict:
    """Result of `judge_norms` for `n` embeddings, as two masks. Embeddings in neither mask are used as stored."""

    bad: np.ndarray
    """`[n]` bool: True for rows that are refused, including those with NaN or infinite values."""
    rounded: np.ndarray
    """`[n]` bool: True for rows that are normalised when read."""


def judge_norms(norms: np.ndarray) -> NormVerdict:
    """Decide from the L2 norm of each embedding whether it is used as stored, normalised when read, or refused.

    An embedding is used as stored if its norm deviates from 1 by at most `UNIT_TOLERANCE`. If the deviation is larger,
    but at most `ROUNDED_TOLERANCE`, it is normalised when read. Otherwise, it is refused.

    Args:
        norms: array `[n]`: the norms of n embeddings.
    """
    with np.errstate(invalid="ignore"):
        distance = np.abs(norms - np.float32(1))
        near = distance <= ROUNDED_TOLERANCE
        return NormVerdict(bad=~near, rounded=near & (distance > UNIT_TOLERANCE))


def normalise_rows(embeds: np.ndarray, norms: np.ndarray, chosen: np.ndarray) -> None:
    """Divide the selected rows by their norms, in place. The division is done in float32.

    Args:
        embeds: array `[n, D]`: n embeddings of dimension D, one per row.
        norms: array `[n]`: the L2 norm of each row.
        chosen: boolean array `[n]`: True for the rows to normalise. The other rows are not changed.
    """
    rows = embeds[chosen].astype(np.float32) / norms[chosen][:, None]
    embeds[chosen] = rows.astype(embeds.dtype)


def row_fault(embed: np.ndarray, norm: float) -> str:
    """Return the reason why an embedding is refused, as a phrase for a message.

    Examples are `holds NaN`, `is all zeros` and `has norm 1.3, not 1`.

    Args:
        embed: one embedding, as an array `[D]` (D is the embedding dimension).
        norm: L2 norm of the embedding.
    """
    if np.isnan(embed).any():
        return "holds NaN"
    if np.isinf(embed).any():
        return "holds infinity"
    return "is all zeros" if norm == 0 else f"has norm {norm:.4g}, not 1"
