"""Sizes of resized images, and the cases in which an image stays as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from priorkit.pipeline.download.decoding.geometry import fit, must_resize, reduction, target_size
from priorkit.pipeline.download.settings import DownloadSettings


def settings(mode: str, **changes: Any) -> DownloadSettings:
    return DownloadSettings.model_validate({"resize_mode": mode, "image_size": 100, **changes})


@pytest.mark.parametrize(
    ("mode", "size", "only_bigger", "always"),
    [
        ("no", (500, 500), False, False),
        ("keep_ratio", (300, 101), True, True),
        ("keep_ratio", (300, 100), False, False),
        ("keep_ratio", (300, 99), False, True),
        ("center_crop", (300, 100), False, True),
        ("center_crop", (100, 100), False, False),
        ("keep_ratio_largest", (101, 50), True, True),
        ("keep_ratio_largest", (100, 50), False, False),
        ("keep_ratio_largest", (99, 50), False, True),
        ("border", (100, 50), False, True),
        ("border", (100, 100), False, False),
    ],
)
def test_an_image_is_resized_only_if_its_size_changes(
    mode: str, size: tuple[int, int], only_bigger: bool, always: bool
) -> None:
    for width, height in (size, size[::-1]):
        assert must_resize(settings(mode), width, height) == only_bigger
        assert must_resize(settings(mode, resize_only_if_bigger=False), width, height) == always


@pytest.mark.parametrize(
    ("mode", "target"),
    [("no", (800, 500)), ("keep_ratio", (160, 100)), ("center_crop", (160, 100)), ("border", (100, 62))],
)
def test_one_side_becomes_the_size_in_the_settings(mode: str, target: tuple[int, int]) -> None:
    assert target_size(settings(mode), 800, 500) == target
    assert target_size(settings(mode), 500, 800) == target[::-1]


def test_a_thin_image_keeps_a_pixel() -> None:
    assert target_size(settings("keep_ratio_largest"), 1000, 2) == (100, 1)


def test_images_are_cropped_at_the_centre_and_padded_with_white() -> None:
    pixels = np.arange(160, dtype=np.uint8)[None, :].repeat(100, 0)
    assert np.array_equal(fit(settings("center_crop"), pixels), pixels[:, 30:130])
    assert fit(settings("keep_ratio"), pixels) is pixels
    padded = fit(settings("border"), np.zeros((62, 100, 3), np.uint8))
    assert padded.shape == (100, 100, 3)
    assert [int(padded[row, 50, 0]) for row in (0, 18, 19, 80, 81, 99)] == [255, 255, 0, 0, 255, 255]


@pytest.mark.parametrize(("side", "factor"), [(1000, 8), (999, 4), (500, 4), (499, 2), (250, 2), (249, 1)])
def test_a_decoder_leaves_a_margin(side: int, factor: int) -> None:
    assert reduction((side, 2 * side), (100, 200)) == factor
