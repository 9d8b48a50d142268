"""Input format `files`: a folder of image files, with captions in files of the same names or in metadata files."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from ..contract.file_marks import note_content
from ..contract.file_stamps import Stamp, file_stamp
from ..contract.known_rows import with_captions
from ..contract.manifest import fingerprint
from ..contract.samples import DEFAULT_FILES, IMAGE_EXTENSIONS, Sample, SampleFiles, encodable, name_extensions
from ..contract.storage import Store
from ..errors import InputError
from .image_folder import ImageRows

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
    table_captions: tuple[tuple[bytes, int], ...] | None = None
    """Captions from metadata files, each with the index of its row among the rows of the image; None if captions are
    read from caption files."""

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
    rules: SampleFiles = DEFAULT_FILES
    """Rules that identify the captions in a caption file."""
    table: pa.Table | None = None
    """Rows of the metadata files that describe the shard's images, with the sample keys in the column `key`; None if
    captions are read from caption files."""
    metadata: str = ""
    """Names of the metadata files, for messages; empty if captions are read from caption files."""

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
                    yield self._sample(pair, image, caption)

    def _sample(self, pair: _Pair, image: bytes | None, content: bytes | None) -> Sample:
        """Create a sample from the contents of its image file and its caption file; each may be missing."""
        instead = (
            name_extensions(pair.extensions, self.rules)
            if pair.extensions
            else f"{self.metadata} names this file, but the folder has no such image"
        )
        if pair.table_captions is not None:
            missing = f"{self.metadata} has no caption of this image"
            return with_captions(Sample(pair.key, image, None, instead=instead), pair.table_captions, missing)
        captions, problem = self.rules.read_captions(content)
        sample = Sample(pair.key, image, captions[0] if captions else None, instead=problem or instead)
        return replace(sample, other_captions=captions[1:])

    def tables(self, store: Store) -> list[pa.Table | None]:
        return [self.table]


def list_file_shards(
    store: Store, rows: int, *, image: bool, rules: SampleFiles = DEFAULT_FILES, image_rows: ImageRows | None = None
) -> list[FileShard]:
    """Pair the image and caption files of a folder, sort the pairs by path, and divide them into shards.

    Args:
        store: folder that contains the files.
        rows: number of pairs per shard; the last shard may have fewer.
        image: True to require at least one image file, False to require at least one caption file.
        rules: rules that identify images and captions.
        image_rows: rows of the folder's metadata files, from which captions are taken; None to take them from caption
            files. An image without a row, and a row without an image, are samples too.

    Raises:
        InputError: the folder does not contain the required image or caption, or it contains two images (or two
            captions) whose paths differ only in the extension. If `rules` lists the extensions of images, the image
            whose extension comes first is used instead.
    """
    described = {store.path(name): info for name, info in store.describe().items()}
    images: dict[str, str] = {}
    captions: dict[str, str] = {}
    extensions: dict[str, list[str]] = {}
    for path in sorted(described):
        stem, extension = rules.split(path[len(store.root) :].lstrip("/"))
        extensions.setdefault(stem, []).append(extension)
        kind = captions if extension.lower() == rules.caption_extension else images
        if (kind is images and not rules.is_image(extension)) or (kind is captions and image_rows is not None):
            continue
        if stem in kind:
            both = {rules.split(each)[1].lower(): each for each in (kind[stem], path)}
            preferred = rules.image_of(both) if kind is images and rules.image_extensions else None
            if preferred is None or len(both) == 1:
                raise InputError(f"{store.url}: {kind[stem]} and {path} have the same name; rename one")
            path = preferred
        kind[stem] = path
    if not (images if image else captions or image_rows):
        known = ", ".join(rules.image_extensions or sorted(IMAGE_EXTENSIONS))
        what = f"images ({known})" if image else f"captions ({rules.caption_extension})"
        raise InputError(f"{store.url} holds no {what}, no image shards (*.tar) and no tables (*.parquet)")
    pairs = []
    for key in sorted(images.keys() | captions.keys()):
        paths = [path for path in (images.get(key), captions.get(key)) if path is not None]
        stamps = tuple(file_stamp(store, path, described[path]) for path in paths)
        pairs.append(_Pair(key, images.get(key), captions.get(key), tuple(extensions[key]), stamps))
    if image_rows is not None:
        return _shards_with_rows(store, rows, rules, pairs, image_rows)
    shards: list[FileShard] = []
    for start in range(0, len(pairs), rows):
        chosen = tuple(pairs[start : start + rows])
        names = [[pair.key, *(path[len(store.root) :] for path in pair.paths)] for pair in chosen]
        shards.append(FileShard(f"{len(shards):05d}", fingerprint(names), chosen, store.root, rules))
    return shards


def _shards_with_rows(
    store: Store, rows: int, rules: SampleFiles, pairs: list[_Pair], image_rows: ImageRows
) -> list[FileShard]:
    """Divide the images of a folder and the rows that describe them into shards.

    The fingerprint of a shard covers its rows, instead of the metadata files, which change when images are added.
    """
    paths = {pair.image[len(store.root) :].lstrip("/"): pair for pair in pairs if pair.image is not None}
    missing = [path for path in image_rows.rows if path not in paths]
    paths.update({path: _Pair(path, None, None, (), ()) for path in missing})  # their key names the missing file
    shards: list[FileShard] = []
    ordered = sorted(paths, key=lambda path: paths[path].key)
    for start in range(0, len(ordered), rows):
        chosen = ordered[start : start + rows]
        described = [(paths[path].key, row) for path in chosen for row in image_rows.rows.get(path, [None])]
        table = image_rows.table.take(pa.array([row for _, row in described], pa.int64()))
        if "key" in table.schema.names:
            table = table.drop_columns(["key"])
        table = table.append_column("key", pa.array([encodable(key) for key, _ in described], pa.string()))
        found = tuple(replace(paths[path], table_captions=tuple(image_rows.captions_of(path))) for path in chosen)
        captions = [[(text.hex(), row) for text, row in pair.table_captions or ()] for pair in found]
        mark = fingerprint([chosen, captions, json.dumps(table.to_pylist(), sort_keys=True, default=str)])
        name = f"{len(shards):05d}"
        shards.append(FileShard(name, mark, found, store.root, rules, table, image_rows.title))
    return shards
