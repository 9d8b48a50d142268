"""Checks for embeddings folders that were written by other tools and therefore have no manifest.

The checks report two kinds of findings. Faults make a shard unusable: opening the folder fails with the first fault,
and the `inspect` command reports all of them. Notes describe unusual contents that are accepted.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Iterator, Mapping

from ..arrow.types import column_fault
from .arrays import FileHeader
from .rules import common_dtype

KEY_COLUMNS = ("key", "image_path")
"""Names of the metadata columns that identify a row, in order of preference."""
GROUP_COLUMNS = ("sha256", "md5", "url")
"""Names of the metadata columns that show which rows have the same image, in order of preference."""
CAPTION_COLUMN = "caption"
NORM_COLUMNS = {"img_emb": "image_norm", "text_emb": "text_norm"}
"""Metadata column with the norms that the embeddings had before normalisation, keyed by kind of embedding."""
_COMMON_COLUMNS = (*KEY_COLUMNS, CAPTION_COLUMN)
"""Names of the columns that must be in either all metadata files of a folder or none."""
_SHOWN_NUMBERS = 5
"""Maximum number of gaps in the shard numbering to list in a note."""

Files = Mapping[str, str]
"""File names of a shard, keyed by kind of file, such as `img_emb`."""


def first_files(shards: Iterable[Files], headers: Mapping[str, FileHeader]) -> dict[str, str]:
    """Return the name of the first valid file of each kind in a folder.

    `shard_faults` compares the other files with these files.

    Args:
        shards: file names of each shard, by kind, in order of the shards.
        headers: header of each file, by file name. Files that are not in this dict are skipped.

    Returns:
        File names by kind, such as `img_emb`. Kinds without a valid file are omitted.
    """
    first: dict[str, str] = {}
    for files in shards:
        for kind, name in files.items():
            if name in headers:
                first.setdefault(kind, name)
    return first


def shard_faults(url: str, files: Files, headers: Mapping[str, FileHeader], first: Files) -> Iterator[tuple[str, str]]:
    """Find the faults that make a shard unusable.

    The files of a shard must have the same number of rows. All arrays in the folder must have the same embedding
    dimension. Each key or caption column must be in either all metadata files or none. Key, caption and group columns
    must not occur twice in a file, and key columns must be convertible to text.

    Args:
        url: location of the folder, for messages.
        files: names of the shard's files, by kind, with image embeddings first. Files whose headers could not be read
            are left out.
        headers: header of each file in the folder, by file name.
        first: name of the folder's first valid file of each kind, from `first_files`. The shard's files are compared
            with these files.

    Yields:
        For each fault, the kind of the faulty file and an error message.
    """
    reference_kind = next((kind for kind in ("img_emb", "text_emb", "metadata") if kind in files), None)
    for kind, name in files.items():
        header, first_header = headers[name], headers[first[kind]]
        reference = files[reference_kind or kind]
        if header.rows != headers[reference].rows:
            yield kind, f"{url}/{name} has {header.rows} rows, {reference} has {headers[reference].rows}"
        if kind == "metadata":
            for fault in _column_faults(url, name, header, first[kind], first_header):
                yield kind, fault
            continue
        other = first.get("img_emb", first[kind])
        if header.embed_dim != headers[other].embed_dim:
            yield (
                kind,
                f"{url}/{name} holds embeddings of {header.embed_dim}, {other} of {headers[other].embed_dim}",
            )


def _column_faults(url: str, name: str, header: FileHeader, first_name: str, first: FileHeader) -> Iterator[str]:
    for column in _COMMON_COLUMNS:
        if (column in header.columns) != (column in first.columns):
            has, lacks = (name, first_name) if column in header.columns else (first_name, name)
            yield f"{url}/{lacks} has no column {column!r}, though {has} has; write both alike"
    assert header.schema is not None
    for column in (*_COMMON_COLUMNS, *GROUP_COLUMNS):
        # captions that are not text are an error only when they are read: a prior trained on stored text embeddings
        # does not need captions
        fault = column_fault(header.schema, column, text=column in KEY_COLUMNS)
        if fault and column in header.columns:
            yield f"{url}/{name}{fault}"


def folder_notes(shards: Mapping[int, Files], headers: Mapping[str, FileHeader]) -> list[str]:
    """Describe unusual but accepted contents of a folder: missing shard numbers, and arrays with different dtypes.

    Args:
        shards: file names of each shard, by kind, keyed by shard number in ascending order.
        headers: header of each file, by file name. Files that are not in this dict are ignored.

    Returns:
        Notes for the user; empty if nothing is unusual.
    """
    notes = []
    if missing := _missing_numbers(list(shards)):
        notes.append(missing)
    for kind in ("img_emb", "text_emb"):
        layouts = [headers[files[kind]].layout for files in shards.values() if files.get(kind) in headers]
        dtypes = collections.Counter(layout.dtype for layout in layouts if layout is not None)
        if len(dtypes) > 1:
            counts = ", ".join(f"{number:,} of {dtype}" for dtype, number in sorted(dtypes.items(), key=str))
            notes.append(f"files of {kind} are of several types ({counts}); all are read as {common_dtype(dtypes)}")
    return notes


def _missing_numbers(numbers: list[int]) -> str:
    """Return a phrase that names the missing shard numbers, with advice for the user.

    Args:
        numbers: existing shard numbers in ascending order.

    Returns:
        The phrase; empty if no number is missing between the lowest and the highest.
    """
    gaps = [(low + 1, high) for low, high in itertools.pairwise(numbers) if high > low + 1]
    if not gaps:
        return ""
    shown = [f"{low}" if high == low + 1 else f"{low} to {high - 1}" for low, high in gaps[:_SHOWN_NUMBERS]]
    more = "" if len(gaps) <= _SHOWN_NUMBERS else " and others"
    is_one = sum(high - low for low, high in gaps) == 1
    subject = f"number {shown[0]} is" if is_one else f"numbers {', '.join(shown)}{more} are"
    return (
        f"{subject} missing between the shards {numbers[0]} and {numbers[-1]}; what is there is read: if the folder "
        "was not fetched whole, fetch the rest"
    )
