"""The emoji of the demo: captions, file names and pictures."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from priorkit.recipes.demo_picture import (
    IMAGE_FORMATS,
    IMAGE_SIZES,
    Emoji,
    _caption,
    _write_image,
    emojis,
    file_name,
    render,
)


@pytest.mark.parametrize(
    ("code", "name", "caption"),
    [
        ("1F44B", ":waving_hand:", "waving hand"),
        ("1F44B-1F3FD", ":waving_hand_medium_skin_tone:", "waving hand: medium skin tone"),
        ("1F9D1-1F3FF-200D-1F9B3", ":person_dark_skin_tone_white_hair:", "person: dark skin tone, white hair"),
        ("1F9D1-1F3FC", ":person_medium-light_skin_tone:", "person: medium-light skin tone"),
        ("1F1E9-1F1EA", ":Germany:", "flag: Germany"),
        ("1F3F4-E0067-E0062-E0065-E006E-E0067-E007F", ":England:", "flag: England"),
        ("1F3F4-200D-2620-FE0F", ":pirate_flag:", "pirate flag"),
    ],
)
def test_captions_have_the_punctuation_of_cldr(code: str, name: str, caption: str) -> None:
    assert _caption(code, name) == caption


def test_captions_are_unique_and_sorted_by_code() -> None:
    pairs = emojis()
    assert len({pair.caption for pair in pairs}) == len({pair.code for pair in pairs}) == len(pairs) > 3900
    assert [pair.code for pair in pairs] == sorted(pair.code for pair in pairs)
    assert all(re.fullmatch(r"[0-9A-F]+(-[0-9A-F]+)*", pair.code) for pair in pairs)
    assert Emoji("1F44B-1F3FD", "waving hand: medium skin tone") in pairs


def test_a_file_name_follows_from_the_code_alone() -> None:
    names = [file_name(Emoji(f"{code:X}", "any caption")) for code in range(0x1F600, 0x1F640)]
    assert file_name(Emoji("1F44B", "waving hand")) == file_name(Emoji("1F44B", "another caption")) == "1F44B.jpg"
    assert {name.partition(".")[2] for name in names} == set(IMAGE_FORMATS)


def test_a_picture_is_drawn_on_white() -> None:
    image = render("1F534", 64)  # a red circle
    pixels = np.asarray(image)
    assert (image.mode, image.size) == ("RGB", (64, 64))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    red, green, blue = pixels[32, 32].tolist()
    assert red > 180 > 120 > max(green, blue)


def test_a_written_picture_has_its_format_and_is_kept(tmp_path: Path) -> None:
    pair = Emoji("1F534", "red circle")
    _write_image(tmp_path, pair)
    (path,) = tmp_path.iterdir()
    assert path.name == file_name(pair)
    with Image.open(path) as image:
        assert image.format == IMAGE_FORMATS[path.suffix[1:]][0]
        assert image.width == image.height
        assert image.width in IMAGE_SIZES
    path.write_bytes(b"as it was")
    _write_image(tmp_path, pair)
    assert path.read_bytes() == b"as it was"
