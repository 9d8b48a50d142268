"""Location of the input: a folder, a single tar or table, or a pattern that names several of them.

A pattern contains braces, such as `train-{0000..0012}.tar` or `{a,b}.tar`, or the wildcards `*`, `?`
and `[...]`.
"""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Iterator

from ..contract.storage import Store
from ..contract.tar_names import TAR_EXTENSIONS, natural_key
from ..errors import InputError

_MAX_NAMES = 100_000
"""Maximum number of names that a pattern may stand for."""
_GROUP = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)(?:\.\.([0-9]+))?")
_FILE_EXTENSIONS = (*TAR_EXTENSIONS, ".parquet")
"""Extensions of single files that can be embedded."""


def locate(url: str) -> tuple[Store, list[str] | None]:
    """Return the folder of an input, and the names of the files in it that the input consists of.

    Args:
        url: folder, tar, table or pattern. A folder or file whose name contains the characters of a pattern is used as
            it is.

    Returns:
        Tuple of the folder and the names, in natural order. The names are None if the input is the whole folder.

    Raises:
        InputError: the pattern matches no file, or one of the files that it names does not exist.
    """
    store = Store(url)
    if "://" in url and _is_pattern(url):
        _require_bucket(url)
    if _is_pattern(url) and not store.fs.exists(store.root):
        return _expand(url)
    if url.lower().endswith(_FILE_EXTENSIONS) and not store.fs.isdir(store.root):
        return Store(posixpath.dirname(store.url)), [posixpath.basename(store.root)]
    return store, None


def _is_pattern(url: str) -> bool:
    return _has_wildcard(url) or next(expand_braces(url)) != url


def _has_wildcard(name: str) -> bool:
    return re.search(r"[*?]|\[[^/]+\]", name) is not None


def _plain_part(url: str) -> str:
    """Return the part of a pattern before its first special character."""
    first = re.search(r"[{*?]|\[(?=[^/]+\])", url)
    assert first is not None
    return url[: first.start()]


def _require_bucket(url: str) -> None:
    """Check that the bucket of a remote pattern contains no special characters.

    Raises:
        InputError: the bucket is part of the pattern.
    """
    if _plain_part(url).rpartition("/")[0].endswith((":", ":/")):
        raise InputError(f"{url}: the bucket or host must not be part of the pattern; name it, and use braces after it")


def _expand(url: str) -> tuple[Store, list[str]]:
    plain = _plain_part(url)
    folder = plain.rpartition("/")[0]
    under = f"{folder}/" if "/" in plain else ""
    store = Store(under or ".")
    names = list(itertools.islice(expand_braces(url[len(under) :]), _MAX_NAMES + 1))
    if len(names) > _MAX_NAMES:
        raise InputError(f"{url} stands for more than {_MAX_NAMES:,} names; use *, or name the folder")
    if any(map(_has_wildcard, names)):
        matches = re.compile("|".join(f"(?:{_to_regex(name)})" for name in dict.fromkeys(names))).fullmatch
        names = [name for name in store.names() if matches(name)]
        if not names:
            raise InputError(f"{url} matches no file in {store.url}")
    for name in names:
        if store.size(name) is None:
            raise InputError(f"{url} names {len(names):,} files, of which {store.url}/{name} is missing")
    return store, sorted(dict.fromkeys(names), key=natural_key)


def expand_braces(pattern: str) -> Iterator[str]:
    """Yield the names that a pattern with braces stands for, as a shell expands it.

    Braces contain alternatives (`{train,val}`), or a range of numbers (`{000..012}`, `{0..20..2}`), whose leading zeros
    are kept. Other braces stand for themselves. Names that two alternatives share are repeated.
    """
    for group in _GROUP.finditer(pattern):
        if (choices := _choices(group[1])) is not None:
            before, after = pattern[: group.start()], pattern[group.end() :]
            for choice in choices:
                yield from expand_braces(f"{before}{choice}{after}")
            return
    yield pattern


def _choices(group: str) -> Iterator[str] | None:
    """Return the alternatives in a pair of braces; None if the braces stand for themselves."""
    if "," in group:
        return iter(group.split(","))
    numbers = _RANGE.fullmatch(group)
    if numbers is None:
        return None
    first, last, step = int(numbers[1]), int(numbers[2]), int(numbers[3] or 1) or 1
    padded = any(len(text) > 1 and text.startswith("0") for text in numbers.groups()[:2])
    width = max(len(numbers[1]), len(numbers[2])) if padded else 0
    values = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    return (f"{value:0{width}d}" for value in values)


def _to_regex(pattern: str) -> str:
    """Convert a pattern to a regular expression. `*` and `?` match within a folder, and `**` across folders.

    `[...]` matches one of the characters in the brackets; `[!...]` matches any other character.
    """
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^/]+?\])", pattern)
    meanings = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(meanings.get(part) or _set_to_regex(part) or re.escape(part) for part in parts)


def _set_to_regex(part: str) -> str | None:
    """Convert a set of characters such as `[0-9a]` or `[!x]` to a regular expression; None if it is no valid set."""
    if not (part.startswith("[") and part.endswith("]") and len(part) > 2):
        return None
    inner = re.sub(r"([\\\[\]^&~|])", r"\\\1", part[1:-1].removeprefix("!"))
    converted = f"(?!/)[{'^' if part[1] == '!' else ''}{inner}]"
    try:
        re.compile(converted)
    except re.error:
        return None
    return converted
