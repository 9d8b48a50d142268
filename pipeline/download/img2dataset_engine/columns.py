"""Columns of a URL list, as img2dataset needs them."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from ...errors import InputError


def img2dataset_order(names: Sequence[str]) -> list[str]:
    """Return column names in the order in which img2dataset writes them: `caption` and `url` are the last.

    Args:
        names: names of the columns of a URL list. One of them is `url`.
    """
    last = [name for name in ("caption", "url") if name in names]
    return [*(name for name in names if name not in last), *last]


def check_columns(source: str, schema: pa.Schema, bbox_column: str | None = None) -> None:
    """Check that img2dataset can write the columns of a URL list. It would drop each row that it cannot write as JSON.

    Args:
        source: location of the list, for the error message.
        schema: columns of the list.
        bbox_column: column with the boxes to blur in each image; None if there is none.

    Raises:
        InputError: img2dataset cannot write a column. The message names it.
    """
    if bbox_column is not None and pa.types.is_string(schema.field(bbox_column).type):
        raise InputError(
            f"{source}: column {bbox_column!r} holds boxes as text, which img2dataset cannot read; store lists of "
            "numbers, or use download.engine=native"
        )
    for field in schema:
        if not _has_json(field.type):
            raise InputError(
                f"{source}: column {field.name!r} holds {field.type}, which img2dataset cannot write as JSON; leave it "
                "out with download.keep_columns (all, none or a list of names), or use download.engine=native"
            )


def _has_json(kind: pa.DataType) -> bool:
    """Return True if the Python values of an Arrow type can be written as JSON without conversion."""
    if pa.types.is_struct(kind):
        return all(_has_json(field.type) for field in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _has_json(kind.value_type)
    tests = (pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_string)
    is_float = pa.types.is_floating(kind) and not pa.types.is_float16(kind)
    return is_float or any(test(kind) for test in tests)
