"""Candidates for the source and the target in a folder: groups of embeddings with the same name.

A name is the folder or the file name of `.npy` files, the name of a column of Parquet tables, or the name of an array
of `.npz` archives.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from ..contract.other_layouts import archive_arrays, vector_columns
from ..contract.storage import Store
from ..errors import InputError

_WORDS = {
    "target": {"image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "visual", "vision"},
    "source": {"text", "texts", "txt", "txts", "caption", "captions", "prompt", "prompts"},
}
"""Words in a name that show the role of the embeddings, by role."""
_OWN_FOLDERS = {"failures", "inputs", "replacing", "selections", "shards", "stats", "token_states"}
"""Folders with files of priorkit that are not embeddings or metadata."""
MAX_SHOWN = 6
"""Maximum number of names listed in a message."""


@dataclass(frozen=True)
class Candidate:
    """Embeddings that may be the source or the target: files of one kind, with the same name."""

    name: str
    """Name of the folder, column or array."""
    store: Store
    files: tuple[str, ...]
    """Names of the files, in natural order."""
    column: str
    """Column of a Parquet table or array of an `.npz` archive; empty for `.npy` files."""


@dataclass(frozen=True)
class Contents:
    """Embeddings and tables in a folder."""

    candidates: tuple[Candidate, ...]
    tables: tuple[str, ...]
    """Names of all Parquet files."""
    plain_tables: tuple[str, ...]
    """Names of the Parquet files without columns of embeddings."""
    store: Store
    only: str | None = None
    """Name of the single file to consider; None for all files."""

    def named(self) -> str:
        """Return the names of the candidates, for messages."""
        names = sorted({candidate.name for candidate in self.candidates})
        more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
        return f"{', '.join(names[:MAX_SHOWN])}{more}"


def list_contents(store: Store, only: str | None = None) -> Contents:
    """List the embeddings and tables in a folder.

    Columns are read from the first table, and arrays from the first archive; the other files are checked when they are
    described.

    Args:
        store: folder to list.
        only: name of the single file to consider; None for all files.
    """
    names = [only] if only is not None else store.names()
    names = sorted((name for name in names if name.partition("/")[0] not in _OWN_FOLDERS), key=natural)
    arrays = [name for name in names if name.endswith(".npy")]
    archives = [name for name in names if name.endswith(".npz")]
    tables = [name for name in names if name.endswith(".parquet")]
    groups: dict[str, list[str]] = {}
    for name in arrays:
        groups.setdefault(_array_name(name), []).append(name)
    candidates = [Candidate(name, store, tuple(files), "") for name, files in groups.items()]
    if archives:
        listed = archive_arrays(store, archives[0])
        candidates += [Candidate(array, store, tuple(archives), array) for array in listed]
    with_vectors: list[str] = []
    folders: dict[str, list[str]] = {}
    for name in tables:
        folders.setdefault(name.rpartition("/")[0], []).append(name)
    for files in folders.values():
        columns = vector_columns(store, files[0])
        with_vectors += files if columns else []
        for column in columns:
            known = next((c for c in candidates if (c.name, c.column) == (column, column)), None)
            merged = (*(known.files if known is not None else ()), *files)
            candidates = [c for c in candidates if c is not known] + [Candidate(column, store, merged, column)]
    plain = [name for name in tables if name not in with_vectors]
    return Contents(tuple(candidates), tuple(tables), tuple(plain), store, only)


def natural(name: str) -> list[int | str]:
    """Return a sort key that orders numbers in names by value."""
    return [int(part) if at % 2 else part for at, part in enumerate(re.split(r"([0-9]+)", name))]


def role_of(name: str) -> str | None:
    """Return the role that a name speaks of: `source` (text) or `target` (images); None for neither or both."""
    words = set(re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()))
    roles = [role for role, known in _WORDS.items() if words & known]
    return roles[0] if len(roles) == 1 else None


def choose(contents: Contents, role: str) -> Candidate | None:
    """Choose the candidate for a role by its name. Return None if no name speaks of the role.

    Args:
        contents: embeddings of the folder.
        role: `source` or `target`.

    Raises:
        InputError: several names speak of the role.
    """
    found = [candidate for candidate in contents.candidates if role_of(candidate.name) == role]
    if len(found) > 1:
        raise InputError(
            f"{contents.store.url} holds several embeddings that may be the {role} ({contents.named()}); name two of "
            f"them, such as {_example(contents)}"
        )
    return found[0] if found else None


def find(contents: Contents, value: str) -> Candidate | None:
    """Return the candidate that a setting names; None if there is none in this folder.

    Args:
        contents: embeddings of the folder.
        value: name of a column, array, folder or file.
    """
    named = [candidate for candidate in contents.candidates if candidate.name == value and candidate.column]
    if named:
        return named[0]
    value = value.strip("/").removeprefix("./")
    arrays = [name for candidate in contents.candidates if not candidate.column for name in candidate.files]
    stem = value.removesuffix(".npy")
    files = [name for name in arrays if name == value or name.startswith(f"{value}/") or value in _names_of(name)]
    if not files:
        return None
    files.sort(key=natural)
    return Candidate(stem.rpartition("/")[2], contents.store, tuple(files), "")


def _example(contents: Contents) -> str:
    """Return options that name a source and a target, for a message. They belong together as far as names show.

    If there is only one candidate, only a target is named.
    """
    names = [candidate.name for candidate in contents.candidates]
    targets = [name for name in names if role_of(name) == "target"] or names
    target = targets[0]
    rest = [name for name in names if name != target]
    others = [name for name in rest if role_of(name) == "source"] or rest
    shared = sorted(others, key=lambda name: -len(_common_start(name, target)))
    options = [f"--source {shlex.quote(shared[0])}"] if shared else []
    return " ".join([*options, f"--target {shlex.quote(target)}"])


def example_options(contents: Contents) -> str:
    """Return options that name a source and a target of a folder, for a message."""
    return _example(contents)


def _common_start(one: str, other: str) -> str:
    length = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]


def _array_name(name: str) -> str:
    """Return the name of the group that a `.npy` file belongs to.

    It is the last part of the path that speaks of a role, such as `img_emb` for `part_0/img_emb/x_0.npy`. If no part
    does, it is the name of the folder, or of a file without a folder, without the number at its end.
    """
    *folders, stem = name.removesuffix(".npy").split("/")
    parts = [_without_number(part) for part in (*folders, stem)]
    folder_roles = [part for part in parts[:-1] if role_of(part)]
    if folder_roles:
        return folder_roles[-1]
    if role_of(parts[-1]):
        return parts[-1]
    return parts[-2] if len(parts) > 1 else parts[-1]


def _names_of(name: str) -> Iterable[str]:
    """Return the names by which a setting may name the group of a `.npy` file: its folders and its own names."""
    *folders, file = name.split("/")
    stem = file.removesuffix(".npy")
    return (*folders, file, stem, _without_number(stem))


def _without_number(part: str) -> str:
    return re.sub(r"[-_.]?[0-9]+$", "", part) or part
