"""Spooled rows against `np.save`."""

from __future__ import annotations

import io

import numpy as np
import pytest

from priorkit.pipeline.contract.vectors.spool import RowSpool


@pytest.mark.parametrize("counts", [[], [0], [3], [5, 0, 2, 100]])
@pytest.mark.parametrize("row_shape", [(), (7,)])
def test_the_file_has_the_bytes_of_numpy(counts: list[int], row_shape: tuple[int, ...]) -> None:
    rows = RowSpool(np.float16, row_shape)
    parts = [np.random.default_rng(n).normal(size=(n, *row_shape)).astype(np.float16) for n in counts]
    for part in parts:
        rows.append(part)
    found, expected = io.BytesIO(), io.BytesIO()
    rows.save(found)
    np.save(expected, np.concatenate([np.empty((0, *row_shape), np.float16), *parts]))
    assert found.getvalue() == expected.getvalue()
    assert rows.rows == sum(counts)
    rows.close()


def test_strided_rows_and_other_types_are_stored_as_declared() -> None:
    rows = RowSpool(np.float16, (3,))
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T
    rows.append(values)
    file = io.BytesIO()
    rows.save(file)
    rows.close()
    file.seek(0)
    assert np.array_equal(np.load(file), values.astype(np.float16))
