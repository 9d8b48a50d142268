"""Independent counts of the rows in a file."""

from __future__ import annotations

import pytest

from priorkit.pipeline.urls.count import FileCount


def test_a_count_accepts_only_its_own_number_of_rows() -> None:
    count = FileCount(rows=1234)
    assert not count.whole
    count.require(1234)
    assert count.whole
    for rows in (1233, 1235):
        with pytest.raises(ValueError, match=rf"^{rows:,} rows were read of 1,234 that it holds"):
            FileCount(rows=1234).require(rows)
