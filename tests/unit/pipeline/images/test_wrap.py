"""Lines of captions that are drawn into pictures."""

from __future__ import annotations

import pytest
from PIL import ImageFont

from priorkit.pipeline.images.wrap import wrap_text

FONT = ImageFont.load_default(13)


@pytest.mark.parametrize("text", ["several words of a caption " * 20, "w" * 300, "x" * 20 + " y" * 200, "汉字" * 200])
def test_long_text_is_cut_to_lines_that_fit(text: str) -> None:
    lines = wrap_text(text, 200, FONT, 5)
    assert len(lines) == 5
    assert all(FONT.getlength(line) <= 200 for line in lines)
    assert [line.endswith("...") for line in lines] == [False] * 4 + [True]
    assert "".join(text.split()).startswith("".join("".join(lines).split())[:-3])


@pytest.mark.parametrize("text", ["a short one", "", "two " * 12, "w" * 40])
def test_text_that_fits_is_whole(text: str) -> None:
    lines = wrap_text(text, 100, FONT, 5)
    assert all(FONT.getlength(line) <= 100 for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_text_that_fills_the_lines_exactly_is_not_cut() -> None:
    assert wrap_text("aa bb", int(FONT.getlength("aa bb")) - 1, FONT, 2) == ["aa", "bb"]
    assert wrap_text("aa bb", int(FONT.getlength("aa bb")) - 1, FONT, 1)[0].endswith("...")
