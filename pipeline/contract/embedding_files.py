"""Functions that group the files of an embeddings folder into shards by file name.

Folders written by clip-retrieval and folders published by LAION have no manifest. Their files are grouped by the number
in the file name. They are not grouped by order, because one missing file would then put all later files into the wrong
shards.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ..errors import InputError
from .manifest import ShardRecord

_EXTENSIONS = {"img_emb": "npy", "text_emb": "npy", "metadata": "parquet", "token_states": "npy", "offsets": "npy"}
"""File extension of each kind of file in an embedding shard, keyed by kind."""
_FOREIGN_KINDS = ("img_emb", "text_emb", "metadata")
"""Kinds of files that priorkit reads in a folder without a manifest, such as one written by clip-retrieval."""
EMBEDDING_STAGES = ("embed", "adopt")
"""Stages that write folders of embeddings."""
IN_PLACE_FILES = "files"
"""Entry of a manifest's `about` section with the names of files that were adopted in place, by shard and kind."""
_LAION_FOLDERS = {"images": "img_emb", "texts": "text_emb"}
"""Kind of the files in LAION-400M's embedding folders, keyed by folder name.

Metadata folders, such as LAION-2B-en's `laion2B-en-metadata`, are recognised by the ending of their names.
"""


def pair_files(names: Iterable[str], url: str) -> dict[int, dict[str, str]]:
    """Group the files of an embeddings folder without a manifest into shards, and check that no shard lacks a file.

    Every shard must have image embeddings, and every kind of file that at least one other shard has.

    Args:
        names: names of the files in the folder.
        url: location of the folder, for messages.

    Returns:
        Dict that maps each shard number, in ascending order, to the shard's file names. These are keyed by kind of
        file: `img_emb`, `text_emb` or `metadata`.

    Raises:
        InputError: a shard lacks a file or has two files of one kind, or a file name contains no number.
    """
    pairs = group_files(names, url, _refuse)
    present = {kind for files in pairs.values() for kind in files}
    needed = [
        kind for kind in _FOREIGN_KINDS if kind in present or kind == "img_emb"
    ]  # some LAION folders contain only image embeddings
    for files in pairs.values():
        for fault in missing_kinds(files, needed, url):
            _refuse(fault)
    return pairs


def group_files(names: Iterable[str], url: str, report: Callable[[str], None]) -> dict[int, dict[str, str]]:
    """Group the files of an embeddings folder into shards by the number in the file name.

    Unlike `pair_files`, this function accepts shards that lack files.

    Args:
        names: names of the files in the folder.
        url: location of the folder, for messages.
        report: function called with an error message for each file that cannot be assigned to a shard. It may raise an
            exception to stop. Otherwise, the file is left out of the result.

    Returns:
        Dict of the same form as the result of `pair_files`.
    """
    pairs: dict[int, dict[str, str]] = {}
    for name in names:
        folder, _, file = name.partition("/")
        kind = "metadata" if folder.endswith("-metadata") else _LAION_FOLDERS.get(folder, folder)
        if kind not in _FOREIGN_KINDS or not file.endswith((".npy", ".parquet")):
            continue
        number = re.fullmatch(rf"{kind}_([0-9]+)\.{_EXTENSIONS[kind]}", file)
        if number is None:
            if folder == kind:  # in other folders, the file may be unrelated
                report(f"{url}/{name} is not named as {_name(kind, '0')} is; remove it, or give it its number")
            continue
        files = pairs.setdefault(int(number[1]), {})
        if kind in files:
            report(f"{url}: {files[kind]} and {name} have the same number; remove one of them")
        else:
            files[kind] = name
    return {number: pairs[number] for number in sorted(pairs)}


def missing_kinds(files: Mapping[str, str], kinds: Iterable[str], url: str) -> Iterator[str]:
    """Yield an error message for each kind of file that is missing from a shard.

    Args:
        files: names of the shard's existing files, by kind; at least one.
        kinds: kinds of files that the shard should have, such as `img_emb`.
        url: location of the folder, for messages.
    """
    other = next(iter(files.values()))
    digits = other.rpartition("_")[2].partition(".")[0]
    for kind in kinds:
        if kind not in files:
            yield (
                f"{url}/{_name(kind, digits)} is missing, though there is {other}; "
                f"restore the one, or remove what is of number {digits}"
            )


def recorded_files(record: ShardRecord, about: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return the names of the files in an embedding shard, keyed by kind of file (`img_emb`, `metadata`, ...).

    The shard's record must have been written by the `embed` or `adopt` command. Files of any other kind are omitted.

    Args:
        record: record of the shard.
        about: section `about` of the manifest, which names files that were adopted in place; None if there are none.
    """
    in_place = (about or {}).get(IN_PLACE_FILES)
    if isinstance(in_place, Mapping):
        files = in_place.get(record.name)
        named = files.items() if isinstance(files, Mapping) else ()
        return {kind: name for kind, name in named if kind in _EXTENSIONS and name in record.files}
    names = {kind: _name(kind, record.name) for kind in _EXTENSIONS}
    return {kind: name for kind, name in names.items() if name in record.files}


def _refuse(fault: str) -> None:
    raise InputError(fault)


def _name(kind: str, number: str) -> str:
    folder = "token_states" if kind == "offsets" else kind
    return f"{folder}/{kind}_{number}.{_EXTENSIONS[kind]}"
