"""Names of the files of a folder of embeddings, and which of them make up a shard.

Folders of clip-retrieval, and those that LAION has published, have no manifest. Their files are paired by number, since
a file that is missing would else shift all that follow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from ..errors import InputError
from .manifest import ShardRecord

_EXTENSIONS = {"img_emb": "npy", "text_emb": "npy", "metadata": "parquet", "token_states": "npy", "offsets": "npy"}
"""Of each kind of file that a shard may have."""
_FOREIGN_KINDS = ("img_emb", "text_emb", "metadata")
"""What a shard of a folder without a manifest may have."""
_LAION_FOLDERS = {"images": "img_emb", "texts": "text_emb"}
"""Folders of LAION-400M that have other names; LAION-2B-en's metadata is in `laion2B-en-metadata`."""


def pair_files(names: Iterable[str], url: str) -> dict[int, dict[str, str]]:
    """Of the files of a folder, those that make up each shard: by the shard's number, ascending, and by kind.

    Raises:
        InputError: a shard lacks a file or has one twice, or a file has no number.
    """
    pairs = group_files(names, url, _refuse)
    there = {kind for files in pairs.values() for kind in files}
    needed = [kind for kind in _FOREIGN_KINDS if kind in there or kind == "img_emb"]  # LAION has images alone too
    for files in pairs.values():
        for fault in missing_kinds(files, needed, url):
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
