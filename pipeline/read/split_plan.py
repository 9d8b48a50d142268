"""Split plan: the assignment of rows to training, validation and test, computed shard by shard.

Rows with the same image form a content group. The split of a row depends only on its content group and the settings.
Therefore, all copies of an image are in the same split, and rows stay in their split when data is added.

Content groups and rows are identified by hashes. The hash of a content group is computed from the identifier of its
image, and the hash of a row is computed from the same identifier and the row's text embedding
(if it has one).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np

from .settings import ReadSettings
from .shards import EmbeddingShard

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
"""Names of the splits. A split plan stores the split of each row as an index into this tuple."""
_TRAIN, _VALIDATION, _TEST = range(3)
_SPLIT_SALT = b"priorkit split\0"
"""Prefix of the bytes that are hashed to assign a row to a split; the identifier of the row's image follows it.

A different prefix would assign rows to different splits.
"""
_DOUBLE_VALUES = 1 << 53
"""Number of evenly spaced values in [0, 1) that a float64, with its 53 significant bits, can represent exactly."""


def plan_splits(shards: Iterable[EmbeddingShard], settings: ReadSettings) -> Iterator[np.ndarray]:
    """Yield the split of each row, block by block.

    Yields:
        `[n]` uint8 array for the next `n` rows: the split of each row, as an index into `SPLITS`.
    """
    for digests in group_digests(shards):
        yield split_codes(digests[:, 0], settings)


def split_codes(hashes: np.ndarray, settings: ReadSettings) -> np.ndarray:
    """Return the split of each image, given the hash of the image's identifier.

    Args:
        hashes: `[n]` uint64 hashes of the images' identifiers.
        settings: split fractions.

    Returns:
        `[n]` uint8 indices into `SPLITS`.
    """
    position = (hashes >> np.uint64(11)).astype(np.float64) / _DOUBLE_VALUES  # uniform in [0, 1)
    # the test split comes first, so that its rows stay the same when the validation fraction changes
    in_test = position < settings.test_fraction
    in_validation = position < settings.test_fraction + settings.validation_fraction
    return np.where(in_test, _TEST, np.where(in_validation, _VALIDATION, _TRAIN)).astype(np.uint8)


def identify_rows(shards: Iterable[EmbeddingShard]) -> Iterator[np.ndarray]:
    """Yield one hash per row, computed from an identifier of the row's image and from the row's text embedding.

    If a shard has no text embeddings, its hashes are computed from the image identifiers alone.

    Yields:
        `[n]` uint64 array with the hashes of the next `n` rows.
    """
    for shard in shards:
        first = 0
        for groups in shard.content_groups():
            contents = groups
            if shard.has("text_emb"):
                texts = shard.read("text_emb", first, len(groups))
                contents = [group + text.tobytes() for group, text in zip(groups, texts, strict=True)]
            digests = b"".join(hashlib.sha256(content).digest()[:8] for content in contents)
            yield np.frombuffer(digests, "<u8").astype(np.uint64)
            first += len(groups)


def identify_groups(shards: Iterable[EmbeddingShard]) -> Iterator[np.ndarray]:
    """Yield one hash per row, block by block. Rows with the same image have the same hash.

    Yields:
        `[n]` uint64 array with the hashes of the next `n` rows.
    """
    for digests in group_digests(shards):
        yield digests[:, 0]


def group_digests(shards: Iterable[EmbeddingShard]) -> Iterator[np.ndarray]:
    """Yield the SHA-256 hash of each row's image identifier, block by block.

    The hashed bytes are the fixed prefix `_SPLIT_SALT`, followed by the identifier. Rows with the same image have
    the same identifier; see `EmbeddingShard.content_groups`.

    Yields:
        `[n, 4]` uint64 array for the next `n` rows: the 256 bits of each hash as four numbers.
    """
    for shard in shards:
        for groups in shard.content_groups():
            digests = b"".join(hashlib.sha256(_SPLIT_SALT + group).digest() for group in groups)
            yield np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 4)
