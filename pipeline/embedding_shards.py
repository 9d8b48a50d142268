"""Embedding shards of a folder, each open for reading: ours by their records, others' by the numbers of their files.

Folders of clip-retrieval, and those that LAION has published, have no manifest. Their files are paired by number, since
a file that is missing would else shift all that follow; what the headers say of the rows must agree.
"""

from __future__ import annotations

import io
import math
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import InputError
from .shards import ShardRecord, fingerprint
from .storage import Store

_EXTENSIONS = {"img_emb": "npy", "text_emb": "npy", "metadata": "parquet", "token_states": "npy", "offsets": "npy"}
"""Of each kind of file that a shard may have."""
_FOREIGN_KINDS = ("img_emb", "text_emb", "metadata")
"""What a shard of a folder without a manifest must have."""
_LAION_FOLDERS = {"images": "img_emb", "texts": "text_emb"}
"""Folders of LAION-400M that have other names; LAION-2B-en's metadata is in `laion2B-en-metadata`."""
_GROUP_COLUMNS = ("sha256", "md5", "url")
"""Columns that name the content of an image, the best first."""
_HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_HEADER_THREADS = 16
_FOOTER_END_BYTES = 8


class EmbeddingShard:
    """One embedding shard: arrays are mapped from local files, and read whole from remote ones.

    Args:
        rows: of each of its files.
        counted_by: what says so, for messages.
        files: name of each file in the store, by kind.
    """

    def __init__(self, store: Store, rows: int, counted_by: str, files: Mapping[str, str]) -> None:
        self._store, self._files, self._counted_by = store, files, counted_by
        self.rows = rows
        self.has_token_states = "token_states" in files
        self._arrays: dict[str, np.ndarray] = {}

    @staticmethod
    def of_record(store: Store, record: ShardRecord) -> EmbeddingShard:
        """The shard that `embed` has recorded.

        Raises:
            InputError: a file is missing or not of the recorded size, or there are no images or no texts in it.
        """
        files = recorded_files(record)
        for kind, setting in (("img_emb", "image"), ("text_emb", "text")):
            if kind not in files:
                raise InputError(f"{store.url} holds no {kind}: it was embedded with embed.{setting}=false")
        for name, entry in record.files.items():
            size = store.size(name)
            if size != entry.bytes:
                found = "is missing" if size is None else f"has {size} bytes instead of {entry.bytes}"
                raise InputError(f"{store.url}/{name} {found}; run `priorkit embed` again to restore it")
        return EmbeddingShard(store, record.rows, "its record", files)

    def array(self, kind: str) -> np.ndarray:
        """A stored array, its length checked."""
        if kind not in self._arrays:
            name = self._files[kind]
            try:
                if self._store.is_local:
                    array = np.load(self._store.path(name), mmap_mode="r", allow_pickle=False)
                else:
                    with self._store.open(name) as file:
                        array = np.load(io.BytesIO(file.read()), allow_pickle=False)
            except (EOFError, ValueError) as error:
                raise _no_array(self._store, name, error) from error
            expected = {"offsets": self.rows + 1, "token_states": len(array)}.get(kind, self.rows)
            self._require_rows(name, len(array), expected)
            self._arrays[kind] = array
        return self._arrays[kind]

    def fill_token_states(self, states: np.ndarray, at: np.ndarray, local: np.ndarray) -> None:
        """Copy the first token states of rows `local` into `states[at]`."""
        if not self.has_token_states:
            raise InputError(f"{self._store.url} stores no token states; embed with token_states: true")
        offsets, flat = self.array("offsets"), self.array("token_states")
        for target, row in zip(at, local, strict=True):
            start = int(offsets[row])
            length = min(int(offsets[row + 1]) - start, states.shape[1])
            states[target, :length] = flat[start : start + length]

    def metadata(self, columns: list[str]) -> pa.Table:
        """Columns of the metadata; `key` is `image_path` where there is no such column, as in others' folders."""
        name = self._files["metadata"]
        try:
            return self._read_metadata(name, columns)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self._store.url}/{name} is damaged ({error}); fetch or embed it again") from error

    def _read_metadata(self, name: str, columns: list[str]) -> pa.Table:
        with self._store.open(name) as file:
            parquet = pq.ParquetFile(file)
            self._require_rows(name, parquet.metadata.num_rows, self.rows)
            stored = parquet.schema_arrow.names
            source = {column: column for column in columns}
            if "key" in source and "key" not in stored and "image_path" in stored:
                source["key"] = "image_path"
            missing = [column for column in source.values() if column not in stored]
            if missing:
                raise InputError(f"{self._store.url}/{name} has no column {missing[0]!r}")
            table = parquet.read(columns=list(dict.fromkeys(source.values())))
            table.validate(full=True)  # text may be no UTF-8
        return pa.table({column: table.column(source[column]) for column in columns})

    def content_groups(self) -> list[bytes]:
        """What names the content of each row: image hash, else URL, else the bytes of the embedding."""
        with self._store.open(self._files["metadata"]) as file:
            available = pq.ParquetFile(file).schema_arrow.names
        columns = [name for name in _GROUP_COLUMNS if name in available]
        named = self.metadata(columns).to_pylist() if columns else [{}] * self.rows
        embeds = self.array("img_emb")
        groups = []
        for row, values in enumerate(named):
            name = next((values[column] for column in columns if values[column]), None)
            groups.append(str(name).encode() if name is not None else embeds[row].tobytes())
        return groups

    def _require_rows(self, name: str, found: int, expected: int) -> None:
        if found != expected:
            raise InputError(f"{self._store.url}/{name} has {found} rows, {self._counted_by} says {expected}")


@dataclass(frozen=True)
class FoundShards:
    """What a folder without a manifest holds."""

    shards: list[EmbeddingShard]
    """By number."""
    embed_dim: int
    fingerprint: str
    """Of the names, sizes and headers of all files."""


def find_shards(store: Store) -> FoundShards | None:
    """The shards of a folder that clip-retrieval wrote, or LAION published; None where no file looks like one.

    Raises:
        InputError: a file is missing, without its like, damaged, or of other rows than the others of its number.
    """
    pairs = pair_files(store.names(), store.url)
    if not pairs:
        return None
    names = [name for files in pairs.values() for name in files.values()]
    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        headers = dict(zip(names, pool.map(lambda name: read_header(store, name), names), strict=True))
    first = next(iter(pairs.values()))["img_emb"]
    shards = []
    for files in pairs.values():
        image = files["img_emb"]
        for kind, name in files.items():
            header, of_image = headers[name], headers[image]
            if header.rows != of_image.rows:
                raise InputError(f"{store.url}/{name} has {header.rows} rows, {image} has {of_image.rows}")
            if kind != "metadata" and header.embed_dim != headers[first].embed_dim:
                raise InputError(
                    f"{store.url}/{name} holds embeddings of {header.embed_dim}, {first} of {headers[first].embed_dim}"
                )
        shards.append(EmbeddingShard(store, headers[image].rows, f"the header of {image}", files))
    mark = fingerprint({name: [headers[name].size, headers[name].content] for name in names})
    return FoundShards(shards, headers[first].embed_dim, mark)


def pair_files(names: Iterable[str], url: str) -> dict[int, dict[str, str]]:
    """Of the files of a folder, those that make up each shard: by the shard's number, ascending, and by kind.

    Raises:
        InputError: a shard lacks a file or has one twice, or a file has no number.
    """
    pairs = group_files(names, url, _refuse)
    for files in pairs.values():
        for fault in missing_kinds(files, _FOREIGN_KINDS, url):
            _refuse(fault)
    return pairs


def group_files(names: Iterable[str], url: str, tell: Callable[[str], None]) -> dict[int, dict[str, str]]:
    """As `pair_files`, of shards that may lack files; what cannot be grouped is left out, and `tell` is told of it."""
    pairs: dict[int, dict[str, str]] = {}
    for name in names:
        folder, _, file = name.partition("/")
        kind = "metadata" if folder.endswith("-metadata") else _LAION_FOLDERS.get(folder, folder)
        if kind not in _FOREIGN_KINDS or not file.endswith((".npy", ".parquet")):
            continue
        number = re.fullmatch(rf"{kind}_([0-9]+)\.{_EXTENSIONS[kind]}", file)
        if number is None:
            if folder == kind:  # of a folder of another name it may be anything
                tell(f"{url}/{name} is not named as {_name(kind, '0')} is; remove it, or give it its number")
            continue
        files = pairs.setdefault(int(number[1]), {})
        if kind in files:
            tell(f"{url}: {files[kind]} and {name} have the same number; remove one of them")
        else:
            files[kind] = name
    return {number: pairs[number] for number in sorted(pairs)}


def missing_kinds(files: Mapping[str, str], kinds: Iterable[str], url: str) -> Iterator[str]:
    """What a shard lacks of some kinds of file, a sentence each."""
    other = next(iter(files.values()))
    digits = other.rpartition("_")[2].partition(".")[0]
    for kind in kinds:
        if kind not in files:
            yield (
                f"{url}/{_name(kind, digits)} is missing, though there is {other}; "
                f"restore the one, or remove what is of number {digits}"
            )


def recorded_files(record: ShardRecord) -> dict[str, str]:
    """Name of each file that a record of `embed` has, by kind."""
    names = {kind: _name(kind, record.name) for kind in _EXTENSIONS}
    return {kind: name for kind, name in names.items() if name in record.files}


def _refuse(fault: str) -> None:
    raise InputError(fault)


def _name(kind: str, number: str) -> str:
    folder = "token_states" if kind == "offsets" else kind
    return f"{folder}/{kind}_{number}.{_EXTENSIONS[kind]}"


@dataclass(frozen=True)
class FileHeader:
    """What a file says of itself."""

    rows: int
    embed_dim: int
    """0 of metadata."""
    size: int
    """Bytes of the file."""
    content: str
    """The header itself, in hexadecimal."""


def read_header(store: Store, name: str) -> FileHeader:
    """The header of an array of embeddings or of metadata; InputError if it is none, or the file is cut short."""
    size = store.size(name) or 0
    return _read_footer(store, name, size) if name.endswith(".parquet") else _read_array_header(store, name, size)


def _read_array_header(store: Store, name: str, size: int) -> FileHeader:
    with store.open(name) as file:
        shape, _, dtype = read_array_start(store, name, file)
        length = file.tell()
        file.seek(0)
        content = file.read(length)
    if len(shape) != 2 or dtype.kind != "f":
        raise _no_array(store, name, f"shape {shape} of {dtype}")
    whole = length + math.prod(shape) * dtype.itemsize
    if size != whole:
        raise InputError(f"{store.url}/{name} has {size} bytes instead of {whole}; fetch or embed it again")
    return FileHeader(shape[0], shape[1], size, content.hex())


def read_array_start(store: Store, name: str, file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran's order, and type of an array; leaves `file` where its values start."""
    try:
        shape, fortran_order, dtype = _HEADER_READERS[np.lib.format.read_magic(file)](file)
    except (EOFError, ValueError, KeyError, SyntaxError, tokenize.TokenError) as error:  # numpy parses it as Python
        raise _no_array(store, name, error) from error
    return shape, fortran_order, dtype


def _read_footer(store: Store, name: str, size: int) -> FileHeader:
    """The header of a parquet file, which stands at its end."""
    try:
        with store.open(name) as file:
            metadata = pq.ParquetFile(file).metadata
            file.seek(max(0, size - _FOOTER_END_BYTES - metadata.serialized_size))
            return FileHeader(metadata.num_rows, 0, size, file.read().hex())
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{store.url}/{name} is damaged ({error}); fetch or embed it again") from error


def _no_array(store: Store, name: str, why: object) -> InputError:
    return InputError(f"{store.url}/{name} is not an array of numbers ({why})")
