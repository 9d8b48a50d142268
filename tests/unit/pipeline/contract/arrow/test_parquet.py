"""Opening of Parquet files."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.contract.arrow.parquet import open_parquet


def content(name: str) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({name: [1, 2]}), file)
    return file.getvalue()


def test_the_footer_is_read() -> None:
    parquet = open_parquet(io.BytesIO(content("aé")))
    assert parquet.schema_arrow.names == ["aé"]
    assert parquet.metadata.num_rows == 2


@pytest.mark.parametrize("damaged", [b"", b"PAR1", content("a")[:-3], content("name").replace(b"name", b"na\xffe")])
def test_damage_of_any_kind_is_an_exception_of_arrow(damaged: bytes) -> None:
    with pytest.raises(pa.ArrowException):
        open_parquet(io.BytesIO(damaged))
