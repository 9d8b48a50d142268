"""The evaluated rows of a split: their order, blocks, gallery and unrelated captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from priorkit.pipeline.errors import InputError
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.prior.evaluate.rows import BLOCK_ROWS, EvaluatedRows, _next_different
from priorkit.prior.evaluate.settings import EvaluateSettings

from ..embeddings import SPLITS, write_embeddings


def test_the_unrelated_caption_is_of_a_row_with_another_image() -> None:
    ids = np.array([7, 7, 2, 9, 9, 9], np.uint64)
    assert _next_different(ids).tolist() == [2, 2, 3, 0, 0, 0]
    assert _next_different(ids[:2]).tolist() == [0, 1]
    assert _next_different(np.array([3, 1, 2], np.uint64)).tolist() == [1, 2, 0]


@pytest.fixture
def dataset(tmp_path: Path) -> EmbeddingDataset:
    """120 rows, three for each image."""
    return EmbeddingDataset(str(write_embeddings(tmp_path / "embeddings", captions=3)), SPLITS)


def test_rows_are_the_first_of_the_split_by_content(dataset: EmbeddingDataset) -> None:
    found = EvaluatedRows(dataset, "test", EvaluateSettings(max_rows=20, seed=5))
    assert found.rows.tolist() == dataset.content_order("test", 5)[:20].tolist()
    assert np.array_equal(found.ids, dataset.row_ids[found.rows])
    assert np.array_equal(found.groups, dataset.group_ids[found.rows])
    assert (found.groups[found.unrelated] != found.groups).all()


@pytest.mark.parametrize("size", [5, 1000])
def test_a_gallery_has_each_image_once_and_an_index_for_each_row(size: int, dataset: EmbeddingDataset) -> None:
    found = EvaluatedRows(dataset, "test", EvaluateSettings(gallery_size=size))
    images = found.groups[found.gallery]
    distinct = list(dict.fromkeys(found.groups.tolist()))
    assert images.tolist() == distinct[:size]  # the first rows of the first images
    for group, index in zip(found.groups, found.gallery_index, strict=True):
        assert index == (images.tolist().index(group) if group in images else -1)
    assert (found.gallery_index == -1).any() == (size == 5)


def test_blocks_cover_every_row_once(tmp_path: Path) -> None:
    folder = str(write_embeddings(tmp_path / "many", rows=400))
    dataset = EmbeddingDataset(folder, ReadSettings(validation_fraction=0, test_fraction=0.9))
    for rows, blocks in ((BLOCK_ROWS, 1), (BLOCK_ROWS + 1, 2), (2 * BLOCK_ROWS, 2)):
        found = EvaluatedRows(dataset, "test", EvaluateSettings(max_rows=rows))
        assert found.blocks == blocks
        covered = np.concatenate([np.arange(rows + 9)[found.block(number)] for number in range(blocks)])
        assert covered.tolist() == list(range(rows))


def test_a_split_of_one_row_is_refused(dataset: EmbeddingDataset) -> None:
    empty = EmbeddingDataset(dataset.store.url, ReadSettings(validation_fraction=0.0, test_fraction=0.2))
    with pytest.raises(
        InputError, match=r"the validation split has 0 rows, at least 2 .* raise read\.validation_fract"
    ):
        EvaluatedRows(empty, "validation", EvaluateSettings())
