"""Boxes in an image, such as faces, that are blurred before the image is stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from ...json_text import parse_json
from ..outcomes import ImageError

Boxes: TypeAlias = Sequence[Sequence[float]]
"""Boxes of one image. Each box is `[x_min, y_min, x_max, y_max]`, as fractions of the image's width and height.

They are relative to the pixels in the file, before an EXIF orientation is applied, as in img2dataset.
"""

_OVERSHOOT = 0.5
"""Largest distance of a box from the image, as a fraction of the image's side.

Detectors return boxes that reach slightly beyond the image. Boxes that reach further are probably in pixels.
"""


def parse_boxes(value: Any) -> list[list[float]]:
    """Return the boxes in a value of the list's box column.

    Args:
        value: boxes, or the JSON text of a list of boxes. None and empty text stand for no boxes.

    Raises:
        ImageError: the value has another form, or a box is not valid. The outcome is `bad_boxes`. The image must then
            not be stored, because it would show what the boxes hide.
    """
    if isinstance(value, str):
        try:
            value = parse_json(value) if value.strip() else None
        except ValueError:
            raise ImageError("bad_boxes", "the text is not JSON") from None
    if value is None:
        return []
    if not isinstance(value, list):
        raise ImageError("bad_boxes", "not a list of boxes [x_min, y_min, x_max, y_max]")
    return [_parse_box(box) for box in value]


def _parse_box(box: Any) -> list[float]:
    """Return the four coordinates of a box.

    Raises:
        ImageError: the box does not have four numbers, its corners are swapped, or it is far outside of the image.
    """
    if not isinstance(box, list) or len(box) != 4 or any(isinstance(number, bool | str) for number in box):
        raise ImageError("bad_boxes", "a box is not four numbers [x_min, y_min, x_max, y_max]")
    try:
        x_min, y_min, x_max, y_max = numbers = [float(number) for number in box]
    except (TypeError, ValueError, OverflowError):
        raise ImageError("bad_boxes", "a box is not four numbers [x_min, y_min, x_max, y_max]") from None
    if not all(-_OVERSHOOT <= number <= 1 + _OVERSHOOT for number in numbers):  # also refuses NaN
        raise ImageError("bad_boxes", f"{numbers} are not fractions of the width and height, from 0 to 1")
    if x_min > x_max or y_min > y_max:
        raise ImageError("bad_boxes", f"{numbers} are not in the order x_min, y_min, x_max, y_max")
    return numbers


def turn_boxes(boxes: Boxes, orientation: int) -> list[list[float]]:
    """Return boxes relative to the upright image, given boxes relative to the pixels in the file.

    Args:
        boxes: boxes relative to the pixels in the file.
        orientation: EXIF orientation that is applied to the pixels, from 1 (upright) to 8; see `upright.turn`.
    """
    turned = []
    for x_min, y_min, x_max, y_max in boxes:
        if orientation in (5, 6, 7, 8):
            x_min, y_min, x_max, y_max = y_min, x_min, y_max, x_max
        if orientation in (2, 3, 6, 7):
            x_min, x_max = 1 - x_max, 1 - x_min
        if orientation in (3, 4, 7, 8):
            y_min, y_max = 1 - y_max, 1 - y_min
        turned.append([x_min, y_min, x_max, y_max])
    return turned
