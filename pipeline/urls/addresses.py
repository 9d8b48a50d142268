"""Files of a URL list: the functions that find them at the list's address, and read their names."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from ..contract.listing import is_data, list_files
from ..errors import InputError
from ..explain import one_line
from .compressed import COMPRESSIONS, MAGIC_BYTES, compression_of
from .remote import DiskCopy, WebAnswer, ask_server, copy_to_disk, is_web, open_address, require_hub, shown_address

FORMATS = ("parquet", "csv", "tsv", "txt", "jsonl", "json")

_ENDINGS = f"{', '.join(FORMATS)}, also with .gz, .bz2, .xz or .zst"
_ARCHIVES = ("zip", "tar")
"""fsspec's names of archives whose members can be listed."""
_ARCHIVE_ERRORS = (zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError, NotImplementedError)
"""Exceptions for archives that are damaged, encrypted, or compressed with an unknown method."""
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""Value that stands for null in the name of a folder of a Hive partition."""
_PAGE_TYPES = ("text/html", "application/xhtml+xml")
"""Content types of web pages. A page may be the index of a folder."""


@dataclass(frozen=True)
class ListFile:
    """File of a URL list."""

    path: str
    """Path or URL of the file for messages. It does not contain secrets."""
    location: str
    """Path or URL from which the file is read. It differs from `path` if the file was copied."""
    format: str
    """One of `FORMATS`."""
    compression: str | None = None
    """One of `COMPRESSIONS`, or None."""
    partitions: tuple[tuple[str, str | None], ...] = ()
    """Name and value of each column that is stored in the names of the file's folders, as in `lang=de/0.parquet`."""
    copy: DiskCopy | None = field(default=None, compare=False, repr=False)
    """Temporary file to which the file, or the archive that contains it, was copied. It exists as long as this
    object."""


def parse_name(name: str) -> tuple[str, str | None]:
    """Return the format and the compression that the name of a file ends with: `csv` and `gz` for `urls.CSV.gz`.

    The format is the extension in lower case. It may be missing from `FORMATS`, in which case the file cannot be read
    as a URL list. The compression is one of `COMPRESSIONS`, or None.
    """
    stem, _, ending = name.rpartition("/")[2].lower().rpartition(".")
    if stem and ending in COMPRESSIONS:
        return stem.rpartition(".")[2], ending
    return ending, None


def is_list(name: str) -> bool:
    """Return True if the name of a file ends like a URL list."""
    return parse_name(name)[0] in FORMATS


def hive_partitions(name: str) -> tuple[tuple[str, str | None], ...]:
    """Return the columns that are stored in the names of a file's folders, which have the form `COLUMN=VALUE`.

    Args:
        name: path of the file, in which only the folders are considered.
    """
    columns: dict[str, str | None] = {}
    for folder in name.split("/")[:-1]:
        column, separator, value = folder.partition("=")
        if separator and column:
            columns[unquote(column)] = None if value == _NULL_PARTITION else unquote(value)
    return tuple(columns.items())


def find_files(source: str) -> list[ListFile]:
    """Find the files of a URL list.

    Args:
        source: path or URL of a file, a folder, or a pattern with `*`, `?` or `[...]`. `zip://MEMBER::ARCHIVE` is a
            member of an archive. `MEMBER` may also be a folder or a pattern.

    Raises:
        InputError: there are no such files, or they cannot be read or have unknown formats.
    """
    if "::" in source:
        return _chained_files(source)
    if is_web(source):
        return _web_files(source)
    fs, path = _open(source, source)
    require_hub(fs, path, source)
    names = _find_names(fs, path)
    if not names:
        raise _no_files(fs, path, source)
    addresses = [(fs.unstrip_protocol(name), inner) for name, inner in names]
    return [ListFile(address, address, *parse_name(address), hive_partitions(inner)) for address, inner in addresses]


def _chained_files(source: str) -> list[ListFile]:
    """Return the files of a list whose address consists of several parts, separated by `::`."""
    outer, _, last = source.rpartition("::")
    shown, copy = f"{outer}::{shown_address(last)}", None
    if is_web(last):
        last, copy = _web_location(last, ask_server(last))
    address = f"{outer}::{last}"
    fs, path = _open(address, shown)
    scheme = outer.partition("::")[0].partition("://")[0]
    if scheme not in _ARCHIVES:  # such as simplecache, which adds nothing to the address of a file
        if not is_list(path):
            raise _no_files(fs, path, shown)
        return [ListFile(shown, address, *parse_name(path), copy=copy)]
    names = _find_names(fs, path)
    if not names:
        raise _no_files(fs, path, shown)
    archive, shown_archive = address.partition("::")[2], shown.partition("::")[2]
    return [
        ListFile(
            f"{scheme}://{name}::{shown_archive}", f"{scheme}://{name}::{archive}", *parse_name(name),
            hive_partitions(inner), copy,
        )
        for name, inner in names
    ]  # fmt: skip


def _web_files(source: str) -> list[ListFile]:
    """Return the files of a list on a web server: one file, or the files that the index page of a folder links to."""
    if "*" in source.partition("?")[0]:
        fs, path = open_address(source)
        names = [name for name in fs.glob(path) if is_list(name)]
        if not names:
            raise InputError(
                f"{shown_address(source)}: no index page of the server links to such files; name one file, or copy the "
                "files to a folder"
            )
        return [_web_file(name, ask_server(name)) for name in sorted(names)]
    answer = ask_server(source)
    if answer.content_type in _PAGE_TYPES and not any(map(is_list, answer.names)):
        fs, path = open_address(source)
        if fs.isdir(path) and (names := [name for name in list_files(fs, path) if is_list(name)]):
            addresses = [f"{path.rstrip('/')}/{name}" for name in names]
            return [_web_file(address, ask_server(address)) for address in addresses]
    return [_web_file(source, answer)]


def _web_file(address: str, answer: WebAnswer) -> ListFile:
    """Return a file on a web server, which is copied if the server does not send parts of it.

    Raises:
        InputError: neither the address nor the server's answer shows the format of the file.
    """
    shown = shown_address(address)
    name = next(filter(is_list, answer.names), None)
    form, compression = parse_name(name) if name is not None else (answer.format, None)
    if form is None:
        zipped = next((name for name in answer.names if name.lower().endswith(".zip")), None)
        if zipped is not None:
            raise InputError(f"{shown}: {zipped} is an archive; name the list in it, as in zip://urls.csv::ADDRESS")
        raise InputError(
            f"{shown}: the server does not say what kind of list it is (known endings are {_ENDINGS}); download it "
            "(`curl -L -o urls.csv ADDRESS`, with the right ending), and name the file"
        )
    location, copy = _web_location(address, answer)
    if copy is not None and compression is not None and answer.is_encoded:
        with open(copy.path, "rb") as file:  # some servers declare a .gz file as an encoded response
            compression = compression_of(file.read(MAGIC_BYTES))
    return ListFile(shown, location, form, compression, copy=copy)


def _web_location(address: str, answer: WebAnswer) -> tuple[str, DiskCopy | None]:
    """Return the location from which a file on a web server is read, and its copy if it must be copied first."""
    if answer.has_ranges:
        return address, None
    copy = copy_to_disk(address, answer.bytes)
    return copy.path, copy


def _open(address: str, shown: str) -> tuple[Any, str]:
    try:
        return open_address(address)
    except FileNotFoundError as error:
        raise InputError(f"{shown}: no such file or folder; name a list of URLs ({_ENDINGS})") from error
    except _ARCHIVE_ERRORS as error:
        raise InputError(f"{shown}: the archive cannot be read ({one_line(error, 120)}); is it complete?") from error


def _find_names(fs: Any, path: str) -> list[tuple[str, str]]:
    """Find the files of a list in a file system.

    Args:
        fs: fsspec file system.
        path: path of a file or folder, or a pattern.

    Returns:
        Path of each file, and the part of it that `path` does not contain: relative to the folder, or from the first
        folder that the pattern leaves open. Empty if there are no such files.
    """
    # `isfile` is called before `isdir`, because `isdir` may need more requests
    if is_list(path) and fs.isfile(path):
        return [(path, "")]
    if fs.isdir(path):
        names = _without_copies(list_files(fs, path))
        return [(f"{path.rstrip('/')}/{name}".removeprefix("" if path else "/"), name) for name in names]
    if not _is_pattern(path):
        return []
    start = min(path.index(character) for character in "*?[" if character in path)
    root = path[: path.rfind("/", 0, start) + 1]
    found: list[str] = []
    try:
        matches = fs.glob(path, detail=True)
    except FileNotFoundError:  # the first folder of the pattern is missing on the hub
        return []
    for match, info in matches.items():
        # a local link is neither a file nor a folder
        if info["type"] == "directory" or (info["type"] != "file" and fs.isdir(match)):
            found += [f"{match}/{name}" for name in list_files(fs, match)]
        elif is_data(match.removeprefix(root)):
            found.append(match)
    return [(name, name.removeprefix(root)) for name in _without_copies(sorted(set(found)))]


def _is_pattern(path: str) -> bool:
    return any(character in path for character in "*?[")


def _without_copies(names: Iterable[str]) -> list[str]:
    """Return the names of lists, without the bz2, xz and zst files whose uncompressed copy is there too.

    A folder with such copies is the same list as without them, which it already was when these files were not read.
    """
    lists = [name for name in names if is_list(name)]
    present = set(lists)
    return [name for name in lists if parse_name(name)[1] in (None, "gz") or name.rpartition(".")[0] not in present]


def _no_files(fs: Any, path: str, shown: str) -> InputError:
    """Return the error for an address at which no file of a list was found."""
    if fs.isdir(path):
        return InputError(f"{shown}: no list of URLs in this folder (looked for {_ENDINGS})")
    if not fs.exists(path):
        if shown.startswith(tuple(f"{scheme}://" for scheme in _ARCHIVES)) and (members := _members(fs)):
            return InputError(f"{shown}: no such file in the archive; it has {members}")
        what = "no file matches this pattern" if _is_pattern(path) else "no such file or folder"
        return InputError(f"{shown}: {what}; name a list of URLs ({_ENDINGS})")
    if path.lower().endswith((".zip", ".tar", ".tar.gz", ".tgz")):
        scheme = "zip" if path.lower().endswith(".zip") else "tar"
        archive, _ = _open(f"{scheme}://::{shown}", shown)
        members = _members(archive) or "no list"
        return InputError(f"{shown}: an archive; name a list in it, as in {scheme}://NAME::{shown} (it has {members})")
    return InputError(f"{shown}: unknown kind of list; known endings are {_ENDINGS}")


def _members(archive: Any) -> str:
    """Return the names of the first lists in an archive, separated by commas."""
    names = [name for name in list_files(archive, "") if is_list(name)]
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
