"""Functions that match samples to the rows of the metadata tables in the input, and to captions in them, by sample key.

If several rows have the same key, they are matched in order to the samples with that key.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from ..errors import InputError
from .arrow.columns import key_texts
from .samples import Place, Sample


def join_rows(
    tables: Sequence[pa.Table | None],
    samples: Sequence[tuple[Place, str]],
    rows: Sequence[tuple[Place, str]],
    title: str,
) -> pa.Table:
    """Find the row of each embedded sample in the metadata tables of the input, and return these rows as one table.

    A sample from an input shard without a table gets a row of nulls.

    Args:
        tables: one item per input shard, indexed by `Place.part`: the shard's table, which has a `key` column, or None
            if the shard has no table.
        samples: position and key of every sample that was read, including failed ones, in any order.
        rows: position and key of each embedded row, in output order. A sample with several captions has several rows.
        title: name of the input shard, or names of the input shards that are merged into one, for messages.

    Returns:
        Table with one row per item of `rows`, in the same order.

    Raises:
        InputError: a table has no row for the key of an embedded sample, or two samples with different keys match one
            row. Also raised if columns of the same name have types that cannot be unified.
    """
    row_of_place: dict[Place, int] = {}
    repeated = {place for place, _ in rows if place.row}  # captions with a table row of their own
    keyed: list[pa.Table] = []
    start = 0
    unknown = {part for part, table in enumerate(tables) if table is None}
    for part, table in enumerate(tables):
        if table is None:
            continue
        members = sorted({(place._replace(row=0), key) for place, key in samples if place.part == part})
        stored = key_texts(table.column("key"), f"column 'key' of {title}")
        places = match_keys(stored, [key for _, key in members], title)
        row_of_place.update(
            {place: start + row for (place, _), row in zip(members, places, strict=True) if row is not None}
        )
        later = _later_rows(stored, row_of_place, start, [place for place in repeated if place.part == part])
        row_of_place.update(later)
        start += table.num_rows
        keyed.append(table.set_column(table.schema.names.index("key"), "key", pa.array(stored, pa.string())))
    missing = [key for place, key in rows if place not in row_of_place and place.part not in unknown]
    if missing:
        raise InputError(
            f"the table of {title} has no row of key {missing[0]!r}; write that table again, or move it away to "
            "embed without it"
        )
    try:
        whole = pa.concat_tables(keyed, promote_options="permissive")
    except pa.ArrowException as error:
        raise InputError(f"the tables of {title} do not fit together ({error}); store their columns alike") from error
    chosen = whole.take(pa.array([row_of_place.get(place) for place, _ in rows], pa.int64()))
    assert isinstance(chosen, pa.Table)
    return chosen


def _later_rows(
    stored: Sequence[str | None], first_rows: Mapping[Place, int], start: int, places: Sequence[Place]
) -> dict[Place, int]:
    """Return the table row of each caption that is not in the first row with the key of its sample.

    Args:
        stored: key of each table row.
        first_rows: first row of each sample, counted from the first row of the first table.
        start: number of rows in the tables before this one.
        places: positions of the captions.
    """
    if not places:
        return {}
    by_key: dict[str | None, list[int]] = defaultdict(list)
    for row, name in enumerate(stored):
        by_key[name].append(row)
    first = {place: first_rows[place._replace(row=0)] - start for place in places}
    return {place: start + by_key[stored[row]][place.row] for place, row in first.items()}


def key_names(key: str) -> tuple[str, ...]:
    """Return the forms of a sample's key that a table may contain, best match first.

    For example, the forms of `cat/0007` are `cat/0007`, `0007` and `7`.
    """
    plain = key.rpartition("/")[2]
    number = plain.lstrip("0") or "0"
    return (key, plain, number) if plain.isascii() and plain.isdigit() else (key, plain)


def match_keys(stored: Sequence[str | None], keys: Sequence[str], title: str) -> list[int | None]:
    """Return the index of the matching table row for each sample key, or None for a key that matches no row.

    The forms of the key that `key_names` returns are tried in order. For the key `cat/0007`, they are `cat/0007`, then
    `0007` (no folder), then `7` (no leading zeros).

    If several rows have the same key, the first matching sample gets the first of these rows, the second sample gets
    the second row, and so on. If there are more matching samples than rows, the remaining samples get the last of these
    rows.

    Args:
        stored: key of each table row.
        keys: key of each sample, in order.
        title: name of the shard, for messages.

    Raises:
        InputError: samples with different keys match the same row, for example because they are in different folders
            and the key in the table lacks the folder.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(stored):
        if name is not None:
            rows[name].append(row)
    seen: Counter[str] = Counter()
    origins: dict[str, str] = {}
    matched: list[int | None] = []
    for key in keys:
        name = next((name for name in key_names(key) if name in rows), None)
        if name is None:
            matched.append(None)
            continue
        if origins.setdefault(name, key) != key and seen[name] >= len(rows[name]):
            raise InputError(
                f"the table of {title} has key {name!r} once, which may be that of {origins[name]!r} or of {key!r}; "
                "store keys with their folders"
            )
        matched.append(rows[name][min(seen[name], len(rows[name]) - 1)])
        seen[name] += 1
    return matched


class RowCaptions:
    """Captions from a column of a metadata table, which are matched to samples by key.

    All rows with the key of a sample are captions of that sample. Only if several samples have the same key, the first
    of them gets the first of these rows, and so on, as in `match_keys`.

    Args:
        stored: key of each table row.
        captions: captions of each table row.
        samples: number of samples with each key. It may be empty if no key is stored twice.
        title: name of the table, for messages.
    """

    def __init__(
        self,
        stored: Sequence[str | None],
        captions: Sequence[tuple[bytes, ...]],
        samples: Mapping[str, int],
        title: str,
    ) -> None:
        self._captions, self._title = captions, title
        self._rows: dict[str, list[int]] = defaultdict(list)
        for row, name in enumerate(stored):
            if name is not None:
                self._rows[name].append(row)
        self._samples: Counter[str] = Counter()
        for key, number in samples.items():
            self._samples[self._name(key) or key] += number
        self._seen: Counter[str] = Counter()

    def _name(self, key: str) -> str | None:
        return next((name for name in key_names(key) if name in self._rows), None)

    def add_to(self, sample: Sample) -> Sample:
        """Return a sample with the captions of its table rows. A sample that could not be read is returned unchanged.

        Call this method for the samples of the tar in order.
        """
        if sample.error is not None:
            return sample
        name = self._name(sample.key)
        if name is None:
            return with_captions(sample, [], f"{self._title} has no row of key {sample.key!r}")
        rows = self._rows[name]
        if self._samples[name] > 1:
            rows = [rows[min(self._seen[name], len(rows) - 1)]]
            self._seen[name] += 1
        found = [(caption, offset) for offset, row in enumerate(rows) for caption in self._captions[row]]
        return with_captions(sample, found, f"{self._title} has no caption in the row of key {name!r}")


def with_captions(sample: Sample, captions: Sequence[tuple[bytes, int]], missing: str) -> Sample:
    """Return a sample with other captions.

    Args:
        sample: sample whose captions are replaced.
        captions: each caption, and the index of its row among the table rows with the sample's key.
        missing: phrase for the error message if there are no captions but the sample has an image.
    """
    texts, rows = tuple(text for text, _ in captions), tuple(row for _, row in captions)
    return replace(
        sample,
        caption=texts[0] if texts else None,
        other_captions=texts[1:],
        caption_rows=rows if any(rows) else (),
        instead=sample.instead if texts or sample.image is None else missing,
    )
