"""The folder of an evaluation: its file names, its manifest, and functions that read it back."""

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
"""Name of the only record in the manifest."""
METRICS_NAME = "metrics.json"
FORMAT_VERSION = 4
"""Version of the layout of `metrics.json`; other versions are not read."""


def rows_name(split: str) -> str:
    """Return the name of the file with the metrics of each row of a split."""
    return f"rows_{split}.parquet"


def evaluate_manifest() -> Manifest:
    """Return the manifest before any work.

    It holds no settings: everything that the metrics depend on is in the input of their record, so that a change
    evaluates again instead of failing.
    """
    return Manifest(STAGE, {}, input={})


def read_metrics(evaluation: str) -> dict[str, Any]:
    """Read `metrics.json` of an evaluation.

    Raises:
        InputError: the file is missing, or has another format version.
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
    """Raise InputError if an evaluation has not ended, or one of its files has changed since."""
    store = Store(evaluation)
    record = require_manifest(store, STAGE).shards.get(RECORD)
    if record is None:
        raise InputError(f"{store.url}: the evaluation has not ended; run `priorkit evaluate` again")
    if bad := differing_files(store, record):
        raise InputError(f"{store.url}/{bad[0]} differs from what was written; run `priorkit evaluate` again")


def read_rows(evaluation: str, split: str) -> pa.Table:
    """Read the metrics of each row of a split; columns `row_id`, `group_id` and `<predictor>/<metric>`."""
    with Store(evaluation).open(rows_name(split)) as file:
        return open_parquet(io.BytesIO(file.read())).read(use_threads=False)
