"""The folder of an evaluation: what its files are called, what its manifest says, and how it is read again."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa

from ...pipeline.contract.arrow.parquet import open_parquet
from ...pipeline.contract.manifest import Manifest, differing_files, require_manifest
from ...pipeline.contract.storage import Store
from ...pipeline.errors import InputError

STAGE = "evaluate"
RECORD = "metrics"
METRICS_NAME = "metrics.json"
FORMAT_VERSION = 4


def rows_name(split: str) -> str:
    """Name of the file with the metrics of each row of a split."""
    return f"rows_{split}.parquet"


def evaluate_manifest() -> Manifest:
    """The manifest before any work. All that metrics depend on is their input: a change makes them anew."""
    return Manifest(STAGE, {}, input={})


def read_metrics(evaluation: str) -> dict[str, Any]:
    """The content of an evaluation's `metrics.json`.

    Raises:
        InputError: there is none, or one of another format.
    """
    store = Store(evaluation)
    require_manifest(store, STAGE)
    value: dict[str, Any] = store.read_json(METRICS_NAME)
    if value.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{store.url}/{METRICS_NAME} has format version {value.get('format_version')}, this priorkit reads "
            f"{FORMAT_VERSION}; run `priorkit evaluate` again"
        )
    return value


def require_whole(evaluation: str) -> None:
    """InputError if an evaluation has not ended, or a file of it is not what was written."""
    store = Store(evaluation)
    record = require_manifest(store, STAGE).shards.get(RECORD)
    if record is None:
        raise InputError(f"{store.url}: the evaluation has not ended; run `priorkit evaluate` again")
    if bad := differing_files(store, record):
        raise InputError(f"{store.url}/{bad[0]} differs from what was written; run `priorkit evaluate` again")


def read_rows(evaluation: str, split: str) -> pa.Table:
    """The metrics of each row of a split, with columns `row_id` and `group_id`."""
    with Store(evaluation).open(rows_name(split)) as file:
        return open_parquet(io.BytesIO(file.read())).read(use_threads=False)
