"""The picture: images are in their places for any caption."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.prior.report.gallery import GalleryRow, draw_gallery, nearest, nearest_images, read_images

from ..embeddings import DIM, write_embeddings
from .images import write_images

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


def test_the_nearest_come_first_and_of_equals_the_first() -> None:
    images = np.array([[0, 1], [1, 0], [0.6, 0.8], [1, 0]], np.float32)
    assert nearest(np.array([[1.0, 0.0], [0.0, 1.0]]), images, 3).tolist() == [[1, 3, 2], [0, 2, 1]]


def test_only_the_images_that_are_asked_for_are_read(tmp_path: Path) -> None:
    found = read_images(str(write_images(tmp_path / "images", 5)), {"000000001", "000000004", "000000009"})
    assert list(found) == ["000000001", "000000004"]
    assert (found["000000004"].size, found["000000004"].mode) == ((40, 30), "RGB")
    assert abs(found["000000004"].getpixel((5, 5))[0] - 40) < 6  # type: ignore[index,operator]


def test_rows_of_a_gallery_are_the_nearest_images_by_text_and_by_the_prior(
    tmp_path: Path, make_prior: Callable[..., Any]
) -> None:
    dataset = EmbeddingDataset(str(write_embeddings(tmp_path / "embeddings", rows=30)))
    prior, rows = make_prior(embed_dim=DIM), np.array([4, 20])
    found = nearest_images(prior, dataset, rows, 3, seed=5)
    assert [(row.caption, row.true_key) for row in found] == [("caption 4", "000000004"), ("caption 20", "000000020")]
    images, text = dataset.take(np.arange(30)).image_embed, dataset.take(rows).text_embed
    predicted = prior.sample(text_embed=text, num_candidates=2, steps=32, seed=5).numpy()
    for queries, keys in (
        (text, [row.nearest_to_text for row in found]),
        (predicted, [row.nearest_to_prior for row in found]),
    ):
        expected = [[f"{place:09d}" for place in line] for line in nearest(queries, images, 3).tolist()]
        assert [list(one) for one in keys] == expected
