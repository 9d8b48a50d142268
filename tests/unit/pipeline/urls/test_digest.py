"""Digests of rows: equal for equal values, in any file format and any chunks."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from priorkit.pipeline.urls.digest import rows_digest

ROWS = [{"url": f"http://h/{number}.jpg", "caption": caption} for number, caption in enumerate("abcdefg")]


def test_different_rows_have_different_digests() -> None:
    table = pa.Table.from_pylist(ROWS)
    assert rows_digest(table) != rows_digest(table.slice(1))
    assert rows_digest(table) != rows_digest(table.take(pa.array([1, 0, 2, 3, 4, 5, 6])))
    joined, split = pa.table({"url": ["a', 'b"], "caption": ["c"]}), pa.table({"url": ["a"], "caption": ["b', 'c"]})
    assert rows_digest(joined) != rows_digest(split)
    assert rows_digest(pa.table({"url": [None]})) != rows_digest(pa.table({"url": ["None"]}))


def column_bytes(values: list[str | None]) -> pa.Array:
    """Return an array of texts whose null values have bytes in the buffer."""
    full = pa.array(["left behind" if value is None else value for value in values])
    mask = pa.array([value is not None for value in values])
    return pa.Array.from_buffers(pa.string(), len(values), [mask.buffers()[1], *full.buffers()[1:]])


def test_the_digest_does_not_depend_on_chunks_and_buffers() -> None:
    values = ["a", None, "", "猫", "tail"] * 50
    table = pa.table({"url": values, "n": list(range(250))})
    expected = rows_digest(table)
    chunked = pa.concat_tables([table.slice(0, 7), table.slice(7, 0), table.slice(7, 100), table.slice(107)])
    assert chunked.column("url").num_chunks == 4
    assert rows_digest(chunked) == expected
    assert rows_digest(pa.table({"url": column_bytes(values), "n": list(range(250))})) == expected
    padded = pa.concat_tables([table, table]).combine_chunks()
    assert rows_digest(padded.slice(250)) == expected
    assert rows_digest(padded.slice(249, 250)) != expected
    assert rows_digest(table.rename_columns(["url", "m"])) != expected


@given(st.lists(st.tuples(st.none() | st.text(max_size=4), st.none() | st.text(max_size=4)), max_size=6))
def test_equal_digests_are_of_equal_rows(rows: list[tuple[str | None, str | None]]) -> None:
    """Swapping two neighbouring cells changes the digest unless they are equal."""

    def table(rows: list[tuple[str | None, str | None]]) -> pa.Table:
        columns = list(zip(*rows, strict=True)) or [(), ()]
        return pa.table({name: pa.array(column, pa.string()) for name, column in zip("ab", columns, strict=True)})

    digest = rows_digest(table(rows))
    cells = [cell for row in rows for cell in row]
    for place in range(len(cells) - 1):
        changed = list(cells)
        changed[place], changed[place + 1] = changed[place + 1], changed[place]
        others = list(zip(changed[::2], changed[1::2], strict=True))
        assert (rows_digest(table(others)) == digest) == (others == rows)


@pytest.mark.parametrize(
    ("values", "kinds"),
    [
        ([1, None, -3, 0], (pa.int8(), pa.int32(), pa.int64())),
        ([1, None, 200, 0], (pa.uint8(), pa.int16(), pa.uint64())),
        ([1.5, None, float("nan"), 0.0], (pa.float32(), pa.float64())),
    ],
)
def test_the_digest_depends_on_values_of_numbers_and_not_on_their_width(
    values: list[float | None], kinds: tuple[pa.DataType, ...]
) -> None:
    tables = [pa.table({"n": pa.array(values, kind)}) for kind in kinds]
    assert len({rows_digest(table) for table in tables}) == 1
    assert rows_digest(pa.concat_tables([tables[0].slice(0, 3), tables[0].slice(3)])) == rows_digest(tables[0])
    for changed in ([values[0], 0, *values[2:]], [None, values[0], *values[2:]], [2, *values[1:]]):
        assert rows_digest(pa.table({"n": pa.array(changed, kinds[0])})) != rows_digest(tables[0])
