"""Writers of pictures: one PNG with a grid of labelled pictures, or a folder with a PNG for each."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from ...pipeline.contract.storage import atomic_file
from ...pipeline.display.terminal import clean
from ...pipeline.errors import SettingsError
from ...pipeline.images.wrap import wrap_text

AddPicture = Callable[[Image.Image, str], None]
"""Function that adds the next picture and its label to the output."""

_MARGIN = 12
"""Gap between pictures in pixels."""
_LEAST_WIDTH = 96
"""Minimum width of a label in pixels."""
_LABEL_LINES = 2
_LARGEST = 80_000_000
"""Maximum number of pixels of a grid. Pillow warns about larger files when it opens them."""
_LABEL_CHARACTERS = 400
"""Number of characters of a prompt that are measured for its label. A label shows fewer."""
_BACKGROUND, _INK = "white", "#1b1b1b"


def is_folder(output: str) -> bool:
    """Return True if `--output` names a folder for one PNG per picture, and False if it names a PNG with a grid.

    Raises:
        SettingsError: it names neither, is not local, or names a folder that contains files.
    """
    if "://" in output:
        raise SettingsError(f"--output {output}: give a local file or folder; copy it from there")
    if output.endswith("/") or os.path.isdir(output):
        if os.path.isfile(output.rstrip("/")):
            raise SettingsError(f"--output {output}: it is a file; name a folder")
        if os.path.isdir(output) and os.listdir(output):
            raise SettingsError(f"--output {output}: the folder is not empty; name a new one")
        return True
    if not output.endswith(".png"):
        raise SettingsError(f"--output {output}: end it with .png for one grid, or with / for a folder of pictures")
    return False


def check_grid(output: str, count: int, size: int) -> None:
    """Check that a grid of pictures fits into one PNG.

    Args:
        output: path of the PNG.
        count: number of pictures.
        size: width and height of a picture in pixels.

    Raises:
        SettingsError: the grid would be too large.
    """
    layout = _Layout(count, size)
    if layout.width * layout.height > _LARGEST:
        fitting = int(0.9 * _LARGEST / (layout.cell_width * layout.cell_height))
        limit = f"draw about {fitting:,} of them with --limit, or " if fitting else ""
        raise SettingsError(
            f"--output {output}: a grid of {count:,} pictures of {size} x {size} pixels is too large for one PNG; "
            f"{limit}give a folder: --output pictures/"
        )


@contextlib.contextmanager
def picture_folder(folder: str) -> Iterator[AddPicture]:
    """Context manager that writes a PNG for each picture. It yields the function that adds a picture.

    The files are named by the row, such as `000000.png`. The text `prompt` in each PNG is its label.
    """
    os.makedirs(folder, exist_ok=True)
    row = 0

    def add(picture: Image.Image, label: str) -> None:
        nonlocal row
        _save(picture, os.path.join(folder, f"{row:06d}.png"), label)
        row += 1

    yield add


@contextlib.contextmanager
def picture_grid(path: str, count: int, size: int) -> Iterator[AddPicture]:
    """Context manager that writes a PNG with a grid of pictures. It yields the function that adds a picture.

    Each picture has its label below it, cut to two lines. The file is written at the end of the `with` block. If an
    exception is raised, no file is created or replaced.

    Args:
        path: path of the PNG.
        count: number of pictures.
        size: width and height of a picture in pixels.
    """
    layout = _Layout(count, size)
    canvas = Image.new("RGB", (layout.width, layout.height), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    position = 0

    def add(picture: Image.Image, label: str) -> None:
        nonlocal position
        left, top = layout.corner(position)
        canvas.paste(picture, (left + (layout.cell_width - _MARGIN - size) // 2, top))
        for number, line in enumerate(layout.label_lines(label)):
            draw.text((left, top + size + 4 + number * layout.line_height), line, fill=_INK, font=layout.font)
        position += 1

    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with atomic_file(path, durable=False) as file:  # opened first, so that no work is lost if it cannot be written
        yield add
        canvas.save(file, "PNG")


class _Layout:
    """Places of the pictures and labels of a grid, which has about as many columns as rows.

    Args:
        count: number of pictures.
        size: width and height of a picture in pixels.
    """

    def __init__(self, count: int, size: int) -> None:
        self.columns = math.ceil(math.sqrt(count))
        font_size = max(12, size // 28)
        self.font = ImageFont.load_default(font_size)
        self.line_height = math.ceil(1.3 * font_size)
        self.cell_width = max(size, _LEAST_WIDTH) + _MARGIN
        self.cell_height = size + 4 + _LABEL_LINES * self.line_height + _MARGIN
        self.width = self.columns * self.cell_width + _MARGIN
        self.height = math.ceil(count / self.columns) * self.cell_height + _MARGIN

    def corner(self, position: int) -> tuple[int, int]:
        """Return the left and the top of a cell."""
        row, column = divmod(position, self.columns)
        return _MARGIN + column * self.cell_width, _MARGIN + row * self.cell_height

    def label_lines(self, label: str) -> list[str]:
        """Return the lines of a label, without characters that the font cannot encode."""
        text = clean(label[:_LABEL_CHARACTERS])
        if not isinstance(self.font, ImageFont.FreeTypeFont):  # Pillow without FreeType, whose font is Latin-1
            text = text.encode("latin-1", "replace").decode("latin-1")
        return wrap_text(text, self.cell_width - _MARGIN, self.font, _LABEL_LINES)


def _save(picture: Image.Image, path: str, prompt: str) -> None:
    """Write a picture as PNG, with its prompt as text in it."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt("prompt", prompt.encode("utf-8", "backslashreplace").decode())
    with atomic_file(path, durable=False) as file:
        picture.save(file, "PNG", pnginfo=info)
