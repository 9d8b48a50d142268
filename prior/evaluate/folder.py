"""Evaluation folder: file names, manifest, and functions that read the results."""

from __future__ import annotations

import io
from typing import Any, cast

import pyarrow as pa

from ...pipeline.contract.arrow.parquet import open_parquet
from ...pipeline.contract.manifest import Manifest, differing_files, require_manifest
from ...pipeline.contract.storage import Store
from ...pipeline.errors import InputError

STAGE = "evaluate"
RECORD = "metrics"
"""Name of the manifest's only record (entry), which lists the evaluation's files."""
METRICS_NAME = "metrics.json"
FORMAT_VERSION = 4
"""Version of the `metrics.json` layout; files with another version are rejected."""


def rows_name(split: str) -> str:
    """Return the name of the file that holds the per-row metrics of a split."""
    return f"rows_{split}.parquet"


def evaluate_manifest() -> Manifest:
    """Return the manifest of an empty evaluation folder.

    The manifest contains no settings. If it did, evaluating again with different settings would raise an error unless
    `overwrite` is True. Instead, a finished evaluation stores a fingerprint of everything that affects the metrics,
    including the settings. If the fingerprint changes, the evaluation is computed again.
    """
    return Manifest(STAGE, {}, input={})


def read_metrics(evaluation: str) -> dict[str, Any]:
    """Read `metrics.json` from an evaluation folder.

    Raises:
        InputError: the file is missing or damaged, or has a different format version.
    """
    store = Store(evaluation)
    require_manifest(store, STAGE)
    value: Any = store.read_json(METRICS_NAME)
    version = value.get("format_version") if isinstance(value, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(
            f"{store.url}/{METRICS_NAME} has format version {version}, this priorkit reads {FORMAT_VERSION}; "
            "run `priorkit evaluate` again"
        )
    return cast(dict[str, Any], value)


def require_whole(evaluation: str) -> None:
    """Raise InputError if an evaluation is unfinished, or if one of its files is missing or has changed."""
    store = Store(evaluation)
    record = require_manifest(store, STAGE).shards.get(RECORD)
    if record is None:
        raise InputError(f"{store.url}: the evaluation has not ended; run `priorkit evaluate` again")
    if bad := differing_files(store, record):
        raise InputError(f"{store.url}/{bad[0]} differs from what was written; run `priorkit evaluate` again")


def read_rows(evaluation: str, split: str) -> pa.Table:
    """Read the table of per-row metrics of a split. Its columns are `row_id`, `group_id` and `<predictor>/<metric>`."""
    with Store(evaluation).open(rows_name(split)) as file:
        return open_parquet(io.BytesIO(file.read())).read(use_threads=False)
