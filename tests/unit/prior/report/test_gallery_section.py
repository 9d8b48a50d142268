"""The projection, and the gallery of nearest images."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.prior.report.gallery_section import FOUND_IMAGES, find_rows, gallery, principal_axes, projection

from ..embeddings import write_embeddings
from .images import write_images


def test_rows_are_found_by_their_ids() -> None:
    known = np.array([9, 4, 2**64 - 1, 4, 7], np.uint64)
    by_id = np.argsort(known, kind="stable")
    wanted = np.array([7, 4, 5, 2**64 - 1, 0, 9], np.uint64)
    assert find_rows(known, by_id, wanted).tolist() == [4, 1, -1, 2, -1, 0]


def test_principal_axes_are_those_of_the_covariance() -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal((300, 5)) * [1, 3, 0.5, 2, 0.1] @ np.linalg.qr(random.standard_normal((5, 5)))[0]
    mean, axes, shares = principal_axes(values)
    scales, vectors = np.linalg.eigh(np.cov(values.T))
    np.testing.assert_allclose(mean, values.mean(axis=0))
    np.testing.assert_allclose(shares, scales[::-1][:2] / scales.sum(), atol=1e-12)
    for axis, expected in zip(axes, vectors.T[::-1][:2], strict=True):
        assert abs(axis @ expected) == pytest.approx(1)
        assert axis[np.abs(axis).argmax()] > 0


def test_a_projection_has_the_axes_of_images_and_one_frame_for_all() -> None:
    image = np.random.default_rng(0).standard_normal((20, 4))
    assert "".join(projection(image, image + 1, None, "test")).count("<figure") == 1
    two, said = projection(image, image + 1, image - 1, "test")
    assert two.count("<figure") == 2
    assert "20 rows" in said
    # ticks are where the frame is: the frame is of all points, so both plots have the same
    ticks = [re.findall(r">([−\d.]+)</text>", part) for part in two.split("<figure")[1:]]
    assert ticks[0] == ticks[1]
    assert len(ticks[0]) > 4


@pytest.fixture
def dataset(tmp_path: Path) -> EmbeddingDataset:
    return EmbeddingDataset(str(write_embeddings(tmp_path / "embeddings", rows=12)))


def cards(dataset: EmbeddingDataset, images: Path) -> tuple[str, list[str]]:
    """The gallery of two rows, searched by their own images."""
    shown, searched = np.array([3, 7]), np.arange(12)
    queries = {"nearest by itself": dataset.take(shown).image_embed}
    fragments, missing = gallery(dataset, str(images), shown, searched, queries)
    return "".join(fragments), missing


def test_a_card_shows_the_caption_the_true_image_and_the_nearest(dataset: EmbeddingDataset, tmp_path: Path) -> None:
    page, missing = cards(dataset, write_images(tmp_path / "images", 12))
    assert missing == []
    assert page.count("<article") == 2
    assert page.count("<img") == 2 * (1 + FOUND_IMAGES)
    assert page.count('class="marked"') == 2  # each row is nearest to itself
    for part, row in zip(page.split("<article")[1:], (3, 7), strict=True):
        assert f"<h3>caption {row}</h3>" in part
        assert f"http://example.com/{row}" in part
        images = re.findall(r'<img( class="marked")? alt="([^"]*)"', part)
        assert images[0] == ("", f"caption {row}")
        assert images[1] == (' class="marked"', f"caption {row}")
        assert len({alt for _, alt in images[1:]}) == FOUND_IMAGES


def test_missing_images_are_replaced_by_captions_and_counted(dataset: EmbeddingDataset, tmp_path: Path) -> None:
    page, missing = cards(dataset, write_images(tmp_path / "images", 4))
    assert re.fullmatch(r".*images lacks \d of the \d+ images that are shown\.", missing[0])
    assert page.count("<img") >= 2
    assert "[caption 7]" in page
    page, missing = cards(dataset, tmp_path / "none")
    assert missing[0].startswith("There are no images to show: ")
    assert page.count("<img") == 0


def test_neighbours_are_searched_among_the_given_rows_only(dataset: EmbeddingDataset, tmp_path: Path) -> None:
    shown, searched = np.array([0]), np.array([0, 2, 4, 6, 8])
    fragments, _ = gallery(
        dataset, str(write_images(tmp_path / "images", 12)), shown, searched, {"a": dataset.take(shown).image_embed}
    )
    found = set(re.findall(r'alt="caption (\d+)"', "".join(fragments)))
    assert found == {"0", "2", "4", "6", "8"}
    assert "among 5 of 12" in "".join(fragments)
