"""Pairing of the files of two folders by name. Files are never paired by their order, so none can be mismatched."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ..errors import InputError


def pair(first: Sequence[str], second: Sequence[str], what: str, url: str) -> dict[str, str]:
    """Pair each file of one list with the file of another list that has the same name or the same numbers.

    Folders that all files of a list have in common are ignored. Files with equal names are paired, such as
    `images/part-3.npy` and `texts/part-3.npy`. If no names are equal, files with equal numbers are paired, such as
    `img_emb_3.npy` and `text_emb_3.npy`. Two single files are paired in any case.

    Args:
        first: names of the files of the first list.
        second: names of the files of the second list.
        what: description of the second list, for messages.
        url: location of the folder of the second list, for messages.

    Returns:
        Name in the second list for each name in the first list.

    Raises:
        InputError: the files cannot be paired, or a file has no partner.
    """
    if len(first) == len(second) == 1:
        return {first[0]: second[0]}
    ways: tuple[Callable[[str], object], ...] = (lambda key: key, _numbers)
    stems, others = _plain_names(first), _plain_names(second)
    for way in ways:
        keys = {way(stem): name for name, stem in stems.items()}
        matches = {way(stem): name for name, stem in others.items()}
        if len(keys) < len(stems) or len(matches) < len(others) or not keys.keys() & matches.keys():
            continue
        for key, name in keys.items():
            if key not in matches:
                raise InputError(
                    f"{name} has no partner among the {what} files of {url}, such as {second[0]}; fetch what is missing"
                )
        for key, name in matches.items():
            if key not in keys:
                raise InputError(f"{url}/{name} has no partner among {first[0]} and the like; fetch what is missing")
        return {name: matches[key] for key, name in keys.items()}
    raise InputError(
        f"{first[0]} and {len(first) - 1} other files cannot be paired with the {what} files of {url}, such as "
        f"{second[0]}; give each pair of files one name or one number"
    )


def _plain_names(names: Sequence[str]) -> dict[str, str]:
    """Return the path of each file without the extension, and without the folders that all files have in common."""
    parts = {name: name.rpartition(".")[0].split("/") for name in names}
    depths = {len(each) for each in parts.values()}
    if len(depths) > 1:
        return {name: "/".join(each) for name, each in parts.items()}
    varying = [at for at in range(depths.pop() - 1) if len({each[at] for each in parts.values()}) > 1]
    return {name: "/".join([*(each[at] for at in varying), each[-1]]) for name, each in parts.items()}


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"[0-9]+", name))
