"""The picture: tiles where they belong, whatever a caption holds."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from priorkit.prior.report.gallery import GalleryRow, _wrap, draw_gallery

COLOURS = {"a": (250, 0, 0), "b": (0, 0, 250), "c": (250, 250, 0)}
IMAGES = {key: Image.new("RGB", (20 + 30 * index, 40), COLOURS[key]) for index, key in enumerate(COLOURS)}

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "[bold red]not markup[/bold red] [link=http://example.com]x[/link] [/]",
    "bell \x07 escape \x1b[31m red \x1b]0;title\x07 null \x00 backspace \x08",
    "right to left \u202e gnihton \u2066 isolate, line \u2028 separator",
    "a lone \udcff surrogate",
    "line\nbreak\ttab\r\nreturn",
    "emoji 👩‍👩‍👧 and 汉字 and عربى",
    "x" * 5000,
    "many words " * 500,
    "",
    "   ",
)


def draw(rows: list[GalleryRow], title: str = "title") -> Image.Image:
    encoded = draw_gallery(rows, IMAGES, title)
    assert encoded.startswith(b"\x89PNG\r\n")
    image = Image.open(io.BytesIO(encoded))
    image.load()
    return image.convert("RGB")


@pytest.mark.parametrize("caption", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_captions_are_drawn(caption: str) -> None:
    row = GalleryRow(caption, "a", ["a", "b"], ["c", "a"])
    plain = draw([GalleryRow("plain", "a", ["a", "b"], ["c", "a"])])
    found = draw([row], title=caption)
    assert found.size == plain.size
    # the tiles are where they were and the caption did not run over them
    left = 260 + 12
    assert np.array_equal(np.asarray(found)[64:, left:], np.asarray(plain)[64:, left:])


def test_tiles_are_in_their_order_and_the_true_image_is_framed() -> None:
    pixels = np.asarray(draw([GalleryRow("x", "b", ["a", "b", "c"], ["b", "c", "a"])]))
    middle = 64 + 48
    left, right = 260 + 12, 260 + 3 * 108 + 24
    for start, keys in ((left, "abc"), (right, "bca")):
        for position, key in enumerate(keys):
            x = start + position * 108
            assert tuple(pixels[middle, x + 48]) == COLOURS[key]
            frame = tuple(pixels[middle, x - 2])
            assert (frame == (0x1A, 0x8F, 0x3C)) == (key == "b")


def test_one_row_below_the_other() -> None:
    one = draw([GalleryRow("x", "a", ["a"], ["b"])])
    two = draw([GalleryRow("x", "a", ["a"], ["b"]), GalleryRow("y", "a", ["c"], ["c"])])
    assert two.height - one.height == 108
    assert np.array_equal(np.asarray(two)[:160], np.asarray(one)[:160])


def test_long_captions_become_at_most_five_lines_that_fit() -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(13)
    lines = _wrap("several words of a caption " * 20, 200, font)
    assert len(lines) == 5
    assert all(font.getlength(line) <= 200 for line in lines)
    assert " ".join(_wrap("a short one", 200, font)) == "a short one"
    assert all(font.getlength(line) <= 200 for line in _wrap("w" * 300, 200, font))
