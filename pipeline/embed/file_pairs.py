"""Input format `files`: a folder of image files, each with its caption in a `.txt` file of the same name."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ..contract.file_marks import note_content
from ..contract.file_stamps import Stamp, file_stamp
from ..contract.manifest import fingerprint
from ..contract.samples import IMAGE_EXTENSIONS, Sample, name_extensions
from ..contract.storage import Store
from ..errors import InputError

_CAPTION_EXTENSION = "txt"
_READ_TOGETHER = 32
"""Number of pairs whose files are fetched concurrently, to hide the latency of remote storage."""


@dataclass(frozen=True)
class _Pair:
    """Image file and caption file whose paths differ only in the extension; one of the two may be missing."""

    key: str
    """Path of the files relative to the input folder, without the extension."""
    image: str | None
    """Path of the image on the file system; None if there is no image."""
    caption: str | None
    """Path of the caption on the file system; None if there is no caption."""
    extensions: tuple[str, ...]
    """Extensions of all files whose path without the extension is `key`, including files that are neither images nor
    captions."""
    stamps: tuple[Stamp, ...]
    """Stamps (size and modification time) of the files in `paths`, taken when the folder was listed."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the files that exist: the image first, then the caption."""
        return tuple(path for path in (self.image, self.caption) if path is not None)


@dataclass(frozen=True)
class FileShard:
    """Input shard of image and caption files from a folder; implements `InputShard`.

    Each sample is a pair of an image file and a caption file; one of the two may be missing. The folder's pairs are
    sorted by path, and the shard contains a consecutive range of them.
    """

    name: str
    fingerprint: str
    """Hash of the file names only. Changes to the contents of the files are detected by file marks, which record the
    size, modification time and hash of each file; see `file_marks`."""
    pairs: tuple[_Pair, ...]
    root: str
    """Path of the input folder on the file system."""

    def sources(self, limit: int | None) -> tuple[str, ...]:
        """Return the paths of the image and caption files, relative to the input folder; see `InputShard`."""
        return tuple(self._name(path) for pair in self.pairs[:limit] for path in pair.paths)

    def _name(self, path: str) -> str:
        return path[len(self.root) :].lstrip("/")

    @property
    def samples(self) -> int:
        return len(self.pairs)

    @property
    def title(self) -> str:
        return f"{self.pairs[0].key} to {self.pairs[-1].key}"

    def read(self, store: Store) -> Iterator[Sample]:
        pairs = iter(self.pairs)
        while group := list(itertools.islice(pairs, _READ_TOGETHER)):
            paths = [path for pair in group for path in pair.paths]
            # use cat_ranges, because other calls treat brackets and asterisks in a file name as a glob pattern
            read = store.fs.cat_ranges(paths, None, None, on_error="return") if paths else []
            contents: dict[str, Any] = dict(zip(paths, read, strict=True))
            for pair in group:
                for path, stamp in zip(pair.paths, pair.stamps, strict=True):
                    content = contents[path]
                    note_content(store, self._name(path), stamp, None if isinstance(content, Exception) else content)
                image, caption = (None if path is None else contents[path] for path in (pair.image, pair.caption))
                failed = next((value for value in (image, caption) if isinstance(value, Exception)), None)
                if failed is not None:
                    yield Sample(pair.key, None, None, f"unreadable: {failed}")
                else:
                    yield Sample(pair.key, image, caption, instead=name_extensions(pair.extensions))

    def tables(self, store: Store) -> list[pa.Table | None]:
        return [None]


def list_file_shards(store: Store, rows: int, *, image: bool) -> list[FileShard]:
    """Pair the image and caption files of a folder, sort the pairs by path, and divide them into shards.

    Args:
        store: folder that contains the files.
        rows: number of pairs per shard; the last shard may have fewer.
        image: True to require at least one image file, False to require at least one caption file.

    Raises:
        InputError: the folder does not contain the required image or caption, or it contains two images (or two
            captions) whose paths differ only in the extension.
    """
    described = {store.path(name): info for name, info in store.describe().items()}
    images: dict[str, str] = {}
    captions: dict[str, str] = {}
    extensions: dict[str, list[str]] = {}
    for path in sorted(described):
        stem, _, extension = path[len(store.root) :].lstrip("/").rpartition(".")
        extensions.setdefault(stem, []).append(extension)
        kind = captions if extension.lower() == _CAPTION_EXTENSION else images
        if kind is images and extension.lower() not in IMAGE_EXTENSIONS:
            continue
        if stem in kind:
            raise InputError(f"{store.url}: {kind[stem]} and {path} have the same name; rename one")
        kind[stem] = path
    keys = sorted(images.keys() | captions.keys())
    if not (images if image else captions):
        what = f"images ({', '.join(sorted(IMAGE_EXTENSIONS))})" if image else "captions (txt)"
        raise InputError(f"{store.url} holds no {what}, no image shards (*.tar) and no tables (*.parquet)")
    pairs = []
    for key in keys:
        paths = [path for path in (images.get(key), captions.get(key)) if path is not None]
        stamps = tuple(file_stamp(store, path, described[path]) for path in paths)
        pairs.append(_Pair(key, images.get(key), captions.get(key), tuple(extensions[key]), stamps))
    shards: list[FileShard] = []
    for start in range(0, len(pairs), rows):
        chosen = tuple(pairs[start : start + rows])
        names = [[pair.key, *(path[len(store.root) :] for path in pair.paths)] for pair in chosen]
        shards.append(FileShard(f"{len(shards):05d}", fingerprint(names), chosen, store.root))
    return shards
