"""Search for the source, the target and the metadata in what the user named, and the plan of the shards to write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from ..contract.file_stamps import stamps
from ..contract.manifest import embedding_shard_name, fingerprint
from ..contract.storage import Store, open_location
from ..errors import InputError, SettingsError
from .candidates import MAX_SHOWN, Candidate, Contents, choose, example_options, find, list_contents, natural, role_of
from .pairing import pair
from .parts import Table, Vectors, describe_table, describe_vectors
from .settings import NO_METADATA, AdoptSettings

_HEADER_THREADS = 16
"""Number of threads that read file headers. The number is high, to hide the latency of remote storage."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class FileSet:
    """Files that hold the same rows: embeddings of the target, of the source, and metadata."""

    target: Vectors
    source: Vectors | None
    table: Table | None
    source_table: Table | None = None
    """Table that holds the source, if it is another file than `table`. Its keys are compared with those of `table`."""

    @property
    def parts(self) -> dict[str, Vectors]:
        """Embeddings by kind of output file: `img_emb` for the target, `text_emb` for the source."""
        return {"img_emb": self.target} | ({} if self.source is None else {"text_emb": self.source})

    @property
    def inputs(self) -> dict[str, Vectors | Table]:
        """Embeddings and metadata by kind of output file."""
        parts: dict[str, Vectors | Table] = {**self.parts}
        return parts if self.table is None else {**parts, "metadata": self.table}


@dataclass(frozen=True)
class Space:
    """Space of the source or of the target."""

    name: str
    """Name of the folder, column or array that the embeddings come from."""
    size: int
    """Number of values of an embedding."""
    dtypes: tuple[str, ...]
    """Names of the dtypes in which the embeddings are stored, sorted."""


@dataclass(frozen=True)
class Found:
    """Everything to adopt: files in order, and the spaces of the source and the target."""

    sets: tuple[FileSet, ...]
    target: Space
    source: Space | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AdoptTask:
    """Shard to write: consecutive rows of a file set."""

    name: str
    input: str
    """Fingerprint of the names, sizes and modification times of the files, and of the range of rows."""
    files: FileSet
    first: int
    """Index of the first row in the files."""
    rows: int


def open_source(location: str) -> tuple[Store, str | None]:
    """Open what the user named: a folder, or a single file, whose name is then the second value.

    Raises:
        InputError: there is nothing at this location.
    """
    fs, path = open_location(location)
    if fs.isfile(path):
        folder, _, name = location.rpartition("/")
        return Store(folder or "."), name
    if not fs.isdir(path):
        raise InputError(f"{location}: no such folder or file")
    return Store(location), None


def find_embeddings(location: str, settings: AdoptSettings) -> Found:
    """Find the source, the target and the metadata in a folder or file, and check that their rows fit together.

    Raises:
        InputError: there are no embeddings, it is not clear which ones are meant, files have no partner, or files that
            belong together differ in their number of rows.
        SettingsError: a setting names something that does not exist.
    """
    store, only = open_source(location)
    contents = list_contents(store, only)
    target, source = _choose_roles(contents, settings)
    partners = _partners(target, source)
    tables, notes = _tables(contents, target, source, settings)
    _require_column_effects(settings, location, has_tables=bool(tables))
    if source is None and (unused := sorted({each.name for each in contents.candidates} - {target.name})):
        notes.append(f"embeddings that are not used: {', '.join(unused[:MAX_SHOWN])}")
    vectors = [_described(candidate) for candidate in (target, source) if candidate is not None]
    footers = dict(zip(tables.values(), _threaded(lambda key: describe_table(*key), tables.values()), strict=True))
    sets = []
    for name in target.files:
        other = None if source is None else vectors[1][partners[name]]
        table = footers[tables[name]] if name in tables else None
        own = None
        if other is not None and table is not None and other.name.endswith(".parquet"):
            is_same = (other.store.url, other.name) == (table.store.url, table.name)
            own = None if is_same else describe_table(other.store, other.name)
        sets.append(FileSet(vectors[0][name], other, table, own))
    for each in sets:
        _require_rows(each)
    sets = [each for each in sets if each.target.rows]
    if not sets:
        raise InputError(f"{location} holds no rows of embeddings")
    spaces = [
        _space(candidate, [part for each in sets if (part := each.parts.get(kind)) is not None])
        for kind, candidate in (("img_emb", target), ("text_emb", source))
        if candidate is not None
    ]
    sets = [_with_sizes(each, spaces) for each in sets]
    return Found(tuple(sets), spaces[0], spaces[1] if source is not None else None, tuple(notes))


def _choose_roles(contents: Contents, settings: AdoptSettings) -> tuple[Candidate, Candidate | None]:
    """Return the target, and the source if there is one."""
    url, chosen = contents.store.url, {}
    for role, value in (("target", settings.target), ("source", settings.source)):
        if value is not None:
            chosen[role] = find(contents, value) or _elsewhere(contents, role, value)
    if not contents.candidates and "target" not in chosen:
        if contents.only is not None:
            raise InputError(
                f"{url}/{contents.only} holds no embeddings: it is no .npy or .npz file, and no table (*.parquet) with "
                "columns of floating-point lists"
            )
        raise InputError(
            f"{url} holds no embeddings: no .npy or .npz files, and no tables with columns of floating-point lists"
        )
    if "target" not in chosen:
        rest = [candidate for candidate in contents.candidates if candidate != chosen.get("source")]
        if not rest:
            raise InputError(
                f"{url} holds embeddings named {contents.named()} and no others, so there is no target for the source "
                f"{chosen['source'].name}; name the target's folder or file with --target"
            )
        target = choose(contents, "target") if settings.source is None or len(rest) > 1 else rest[0]
        if target is None and settings.source is None and len(rest) == 1 and role_of(rest[0].name) is None:
            target = rest[0]
        if target is None:
            kinds = "" if len(rest) > 1 else " (columns of whole numbers or bytes are no embeddings)"
            raise InputError(
                f"{url} holds embeddings named {contents.named()}{kinds}, and it is not clear which is the target; "
                f"name it, such as {example_options(contents)}"
            )
        chosen["target"] = target
    if "source" not in chosen and (source := choose(contents, "source")) is not None and source != chosen["target"]:
        chosen["source"] = source
    if chosen.get("source") == chosen["target"]:
        raise SettingsError(f"--source and --target both name {chosen['target'].name}; name two")
    return chosen["target"], chosen.get("source")


def _elsewhere(contents: Contents, role: str, value: str) -> Candidate:
    """Return the embeddings of another folder or file that a setting names.

    Raises:
        SettingsError: there are no embeddings, or several.
    """
    held = f"; {contents.store.url} holds {contents.named()}" if contents.candidates else ""
    try:
        store, only = open_source(value)
    except InputError:
        raise SettingsError(f"--{role} {value}: no such folder, file, column or array{held}") from None
    there = list_contents(store, only).candidates
    if len(there) != 1:
        names = ", ".join(candidate.name for candidate in there)
        raise SettingsError(
            f"--{role} {value}: it holds {f'several embeddings ({names}), one is needed' if there else 'no embeddings'}"
        )
    name = store.root.rstrip("/").rpartition("/")[2] if only is None and not there[0].column else there[0].name
    return Candidate(name, there[0].store, there[0].files, there[0].column)


def _partners(target: Candidate, source: Candidate | None) -> dict[str, str]:
    """Return the file with the source embeddings for each file with target embeddings."""
    if source is None:
        return {}
    if target.column and source.column and target.files == source.files and target.store.url == source.store.url:
        return {name: name for name in target.files}
    return pair(target.files, source.files, "source", source.store.url)


def _tables(
    contents: Contents, target: Candidate, source: Candidate | None, settings: AdoptSettings
) -> tuple[dict[str, tuple[Store, str]], list[str]]:
    """Return the table with the metadata for each file with target embeddings, and notes about tables left out."""
    store, wanted = contents.store, settings.metadata
    if wanted == NO_METADATA:
        return {}, []
    if wanted is not None:
        inside = [name for name in contents.tables if name == wanted or f"/{wanted.strip('/')}/" in f"/{name}"]
        if not inside:
            try:
                store, only = open_source(wanted)
            except InputError:
                raise SettingsError(f"--metadata {wanted}: no such folder or file") from None
            inside = [only] if only is not None else [name for name in store.names() if name.endswith(".parquet")]
        if not inside:
            raise SettingsError(f"--metadata {wanted}: it holds no table (*.parquet)")
        paired = pair(target.files, sorted(inside, key=natural), "metadata", store.url)
        return {name: (store, table) for name, table in paired.items()}, []
    for candidate in (target, source):
        if candidate is not None and candidate.files[0].endswith(".parquet"):
            partners = _partners(target, source) if candidate is source else {name: name for name in target.files}
            return {name: (candidate.store, table) for name, table in partners.items()}, []
    tables = [name for name in contents.plain_tables if _is_metadata(name)] or list(contents.plain_tables)
    if not tables or target.store.url != store.url:
        return {}, []
    try:
        paired = pair(target.files, tables, "metadata", store.url)
    except InputError as error:
        raise InputError(f"{error}, name the tables with --metadata, or leave them out with --metadata none") from None
    left_out = len(contents.plain_tables) - len(tables)
    notes = [f"{left_out:,} tables outside the metadata folder were left out"] if left_out else []
    return {name: (store, table) for name, table in paired.items()}, notes


def _require_column_effects(settings: AdoptSettings, location: str, *, has_tables: bool) -> None:
    """Check that there are tables if a setting names a column of them.

    Raises:
        SettingsError: there are no tables, so the setting has no effect.
    """
    named = {"key_column": settings.key_column, "caption_column": settings.caption_column}
    for name, value in named.items():
        if value is None or has_tables:
            continue
        if settings.metadata == NO_METADATA:
            raise SettingsError(f"{name}={value} has no effect with --metadata none; leave one of the two out")
        raise SettingsError(
            f"{name}={value}: there is no table (*.parquet) beside the embeddings of {location}; name the tables with "
            "--metadata"
        )


def _is_metadata(name: str) -> bool:
    """Return True if a table lies in a folder named `metadata` or, as LAION's, `...-metadata`."""
    return any(folder.endswith("metadata") for folder in name.split("/")[:-1])


def _described(candidate: Candidate) -> dict[str, Vectors]:
    """Describe all files of a candidate, by file name."""
    parts = _threaded(lambda name: describe_vectors(candidate.store, name, candidate.column), candidate.files)
    return dict(zip(candidate.files, parts, strict=True))


def _threaded(read: Callable[[Item], object], items: Iterable[Item]) -> list:  # type: ignore[type-arg]
    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        return list(pool.map(read, items))


def _require_rows(files: FileSet) -> None:
    """Check that the files of a set have the same number of rows.

    Raises:
        InputError: the numbers of rows differ.
    """
    for other in files.inputs.values():
        if other.rows != files.target.rows:
            raise InputError(
                f"{other.title} has {other.rows:,} rows, {files.target.title} has {files.target.rows:,}; fetch both "
                "again: their rows do not belong together"
            )


def _space(candidate: Candidate, parts: Sequence[Vectors]) -> Space:
    """Return the space of a candidate, after checking that all its embeddings have the same size.

    Raises:
        InputError: the sizes differ, or no file has an embedding.
    """
    sized = [part for part in parts if part.dim]
    if not sized:
        raise InputError(f"{parts[0].title} holds no embeddings: each is null or empty")
    for part in sized:
        if part.dim != sized[0].dim:
            raise InputError(f"{part.title} holds embeddings of {part.dim}, {sized[0].title} of {sized[0].dim}")
    return Space(candidate.name, sized[0].dim, tuple(sorted({part.dtype for part in sized})))


def _with_sizes(files: FileSet, spaces: Sequence[Space]) -> FileSet:
    """Return a file set in which files without any embedding, such as all nulls, have the size of their space."""
    target = replace(files.target, dim=spaces[0].size)
    source = None if files.source is None else replace(files.source, dim=spaces[1].size)
    return replace(files, target=target, source=source)


def plan_tasks(found: Found, settings: AdoptSettings, limit: int | None = None) -> list[AdoptTask]:
    """Return one task for each shard to write.

    Args:
        found: files to adopt.
        settings: adopt settings.
        limit: number of rows to adopt, starting with the first; None for all.
    """
    marks = _marks(found)
    most = None if settings.in_place else settings.rows_per_shard
    tasks: list[AdoptTask] = []
    left = limit
    for files in found.sets:
        rows = files.target.rows
        for first in range(0, rows, most or rows):
            count = min(most or rows, rows - first, rows if left is None else left)
            if count == 0:
                return tasks
            left = None if left is None else left - count
            about = [
                [part.name, getattr(part, "column", ""), *marks[part.store.url, part.name]]
                for part in files.inputs.values()
            ]
            task = AdoptTask(
                embedding_shard_name(len(tasks)), fingerprint([about, first, count]), files, first, count
            )  # fmt: skip
            tasks.append(task)
    return tasks


def _marks(found: Found) -> dict[tuple[str, str], tuple[int, str | None]]:
    """Return the size and modification time (or tags, such as the ETag) of each file, by folder and file name.

    Raises:
        InputError: a file has been removed since its header was read.
    """
    stores: dict[str, tuple[Store, set[str]]] = {}
    for files in found.sets:
        for part in files.inputs.values():
            stores.setdefault(part.store.url, (part.store, set()))[1].add(part.name)
    marks: dict[tuple[str, str], tuple[int, str | None]] = {}
    for url, (store, names) in stores.items():
        described = stamps(store, sorted(names))
        if missing := sorted(names - described.keys()):
            raise InputError(f"{url}/{missing[0]} could be read, but is no longer there; run the same command again")
        for name, stamp in described.items():
            marks[url, name] = (stamp.bytes, stamp.modified)
    return marks
