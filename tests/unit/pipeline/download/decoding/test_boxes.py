"""Boxes to blur: forms that are accepted, forms that are refused, and boxes of rotated images."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from priorkit.pipeline.download.decoding.boxes import parse_boxes, turn_boxes
from priorkit.pipeline.download.outcomes import ImageError
from priorkit.pipeline.images.upright import turn

BOX = [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("value", "boxes"),
    [
        (None, []),
        ("", []),
        (" \n", []),
        ("null", []),
        ("[]", []),
        ([], []),
        ([BOX], [BOX]),
        ([BOX, BOX], [BOX, BOX]),
        ("[[0.25, 0.5, 0.75, 1]]", [BOX]),
        ([[0, 0, 1, 1]], [[0.0, 0.0, 1.0, 1.0]]),
        ([[Decimal("0.25"), Decimal("0.5"), Decimal("0.75"), 1]], [BOX]),
        ([[-0.02, 0, 1.03, 1]], [[-0.02, 0, 1.03, 1]]),
        ([[0.5, 0.5, 0.5, 0.5]], [[0.5] * 4]),
    ],
)
def test_boxes_are_lists_or_their_json(value: Any, boxes: list[list[float]]) -> None:
    assert parse_boxes(value) == boxes


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("[[0.1,", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("{}", "not a list of boxes"),
        (0.5, "not a list of boxes"),
        ("0.1 0.2 0.3 0.4", "not JSON"),
        (BOX, "not four numbers"),
        ([BOX[:3]], "not four numbers"),
        ([[*BOX, 1]], "not four numbers"),
        ([None], "not four numbers"),
        ([[0, 0, 1, None]], "not four numbers"),
        ([[0, 0, 1, "1"]], "not four numbers"),
        ([[False, 0, 1, 1]], "not four numbers"),
        ([{"x": 1}], "not four numbers"),
        ([[10, 20, 60, 80]], r"\[10\.0, 20\.0, 60\.0, 80\.0\] are not fractions"),
        ([[0, 0, 60, 80]], "not fractions"),
        ([[-1, 0, 1, 1]], "not fractions"),
        ("[[0, 0, 1, NaN]]", "not fractions"),
        ("[[0, 0, 1, 1e999]]", "not fractions"),
        ([[0.6, 0, 0.5, 1]], "not in the order"),
        ([[0, 0.6, 1, 0.5]], "not in the order"),
        ([BOX, [0, 0]], "four numbers"),
    ],
)
def test_other_values_are_refused(value: Any, reason: str) -> None:
    with pytest.raises(ImageError, match=f"^bad_boxes: .*{reason}") as error:
        parse_boxes(value)
    assert error.value.outcome == "bad_boxes"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_with_the_pixels(orientation: int) -> None:
    pixels = np.zeros((40, 80), np.uint8)
    pixels[20:30, 8:40] = 1
    turned = turn(pixels, orientation)
    height, width = turned.shape
    [(x_min, y_min, x_max, y_max)] = turn_boxes([[0.1, 0.5, 0.5, 0.75]], orientation)
    inside = turned[round(y_min * height) : round(y_max * height), round(x_min * width) : round(x_max * width)]
    assert inside.all()
    assert inside.sum() == turned.sum() == 320
