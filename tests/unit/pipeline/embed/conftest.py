"""Small inputs of every format, and the samples that are read from them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

from priorkit.pipeline.contract.samples import Sample
from priorkit.pipeline.embed.inputs import InputShard, list_input_shards, open_input
from priorkit.pipeline.embed.settings import EmbedSettings

PAIRS = {
    "b.jpg": b"image b", "b.txt": b"caption b", "a photo.PNG": b"image a", "a photo.txt": b"caption a",
    "sub/c.webp": b"image c", "only text.txt": b"text", "readme.md": b"no", "猫.jpeg": b"image cat", "猫.txt": b"cat",
    "d [1]?.jpg": b"image d", "d [1]?.txt": b"caption d", "*.txt": b"star",
}  # fmt: skip
"""Files with odd names, some without an image or a caption."""


def shards_of(path: Path, **settings: Any) -> list[InputShard]:
    """List the shards of an input."""
    return list_input_shards(str(path), EmbedSettings(**settings))


def samples_of(path: Path, **settings: Any) -> list[list[Sample]]:
    """Read the samples of each shard."""
    store = open_input(str(path))
    return [list(shard.read(store)) for shard in shards_of(path, **settings)]


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files by name and return their folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_tar(path: Path, first: int, count: int) -> None:
    """Write a tar of one-byte captions, named by number."""
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + count):
            info = tarfile.TarInfo(f"{number:05d}.txt")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))


def png(colour: str) -> bytes:
    """Encode an image of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(file, "PNG")
    return file.getvalue()
