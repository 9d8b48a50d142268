"""Small folders of images for tests of galleries."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from PIL import Image


def write_images(folder: Path, rows: int) -> Path:
    """Write one webdataset shard of plain images, with the keys of `embeddings.write_embeddings`."""
    folder.mkdir()
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for row in range(rows):
            encoded = io.BytesIO()
            Image.new("RGB", (40, 30), (10 * row, 100, 200)).save(encoded, "JPEG")
            for ending, data in (("jpg", encoded.getvalue()), ("txt", f"caption {row}".encode())):
                info = tarfile.TarInfo(f"{row:09d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder
