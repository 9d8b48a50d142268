"""Grids of labelled pictures and folders of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from priorkit.pipeline.errors import SettingsError
from priorkit.prior.decode.output import check_grid, is_folder, picture_folder, picture_grid

SIZE = 40
COLOURS = ((250, 0, 0), (0, 0, 250), (250, 250, 0), (0, 250, 0), (10, 20, 30))
HOSTILE = [
    "", "   ", "x" * 5000, "many words " * 500, "emoji 👩‍👩‍👧 and 汉字 and عربى", "a lone \udcff surrogate",
    "null \x00 bell \x07 escape \x1b[31m", "right to left \u202e gnihton", "line\nbreak\ttab\u2028",
]  # fmt: skip


def write_grid(path: Path, labels: list[str]) -> np.ndarray:
    with picture_grid(str(path), len(labels), SIZE) as add:
        for number, label in enumerate(labels):
            add(Image.new("RGB", (SIZE, SIZE), COLOURS[number % 5]), label)
    return np.asarray(Image.open(path).convert("RGB"))


def pictures(grid: np.ndarray, count: int, columns: int) -> list[np.ndarray]:
    """The pictures of a grid, whose cells are as wide as a label."""
    height = (grid.shape[0] - 12) // -(-count // columns)
    corners = [(12 + n // columns * height, 12 + n % columns * 108 + (96 - SIZE) // 2) for n in range(count)]
    return [grid[top : top + SIZE, left : left + SIZE] for top, left in corners]


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (3, 2), (4, 2), (5, 3)])
def test_pictures_are_in_order_and_whole(count: int, columns: int, tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "new" / "a.png", [f"picture {n}" for n in range(count)])
    for number, picture in enumerate(pictures(grid, count, columns)):
        assert (picture == COLOURS[number]).all()


def test_labels_are_drawn_below_and_never_over_a_picture(tmp_path: Path) -> None:
    blank = write_grid(tmp_path / "blank.png", [""] * len(HOSTILE))
    drawn = write_grid(tmp_path / "drawn.png", HOSTILE)
    assert drawn.shape == blank.shape
    for before, after in zip(pictures(blank, 9, 3), pictures(drawn, 9, 3), strict=True):
        assert np.array_equal(before, after)
    changed = (drawn != blank).any(axis=2)
    cell = (drawn.shape[0] - 12) // 3
    inked = [bool(changed[12 + n // 3 * cell :][:cell, 12 + n % 3 * 108 :][:, :96].any()) for n in range(9)]
    assert inked == [bool(label.strip()) for label in HOSTILE]


def test_a_folder_gets_a_file_for_each_picture_with_its_prompt(tmp_path: Path) -> None:
    with picture_folder(str(tmp_path / "new" / "pictures")) as add:
        for number, label in enumerate(HOSTILE):
            add(Image.new("RGB", (SIZE, SIZE), COLOURS[number % 5]), label)
    names = sorted(path.name for path in (tmp_path / "new" / "pictures").iterdir())
    assert names == [f"{number:06d}.png" for number in range(9)]
    for number, label in enumerate(HOSTILE):
        with Image.open(tmp_path / "new" / "pictures" / names[number]) as picture:
            assert picture.getpixel((5, 5)) == COLOURS[number % 5]
            assert picture.text["prompt"] == label.encode("utf-8", "backslashreplace").decode()  # type: ignore[attr-defined]


def test_nothing_is_written_if_drawing_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with picture_grid(str(tmp_path / "a.png"), 2, SIZE) as add:
            add(Image.new("RGB", (SIZE, SIZE)), "")
            raise RuntimeError

    (tmp_path / "a.png").write_bytes(b"before")
    with pytest.raises(RuntimeError):
        fail()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def test_the_output_is_a_grid_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").touch()
    (tmp_path / "empty").mkdir()
    assert is_folder(str(tmp_path / "new.png")) is False
    assert is_folder(f"{tmp_path}/new/") is True
    assert is_folder(str(tmp_path / "empty")) is True
    for output, named in (
        ("s3://bucket/a.png", "give a local file"),
        (str(tmp_path / "full"), "the folder is not empty"),
        (str(tmp_path / "a.jpg"), "end it with .png for one grid, or with / for a folder"),
        (f"{tmp_path}/full/a.txt/", "it is a file; name a folder"),
    ):
        with pytest.raises(SettingsError, match=named):
            is_folder(output)


def test_a_grid_that_no_program_would_open_is_refused_with_a_number_that_fits() -> None:
    check_grid("a.png", 250, 512)
    with pytest.raises(SettingsError, match="a grid of 1,000 pictures of 512 x 512 pixels is too large") as error:
        check_grid("a.png", 1000, 512)
    fitting = int(str(error.value).split("about ")[1].split()[0])
    assert fitting > 200
    check_grid("a.png", fitting, 512)
    with pytest.raises(SettingsError, match=r"too large for one PNG; give a folder: --output pictures/$"):
        check_grid("a.png", 1, 10_000)
