"""Metadata and token states of embedding shards: keys, captions, norms and offsets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.inspect.findings import Inspection
from priorkit.pipeline.inspect.metadata import MetadataInspector, inspect_failures
from priorkit.pipeline.inspect.vectors import ShardParts

SOUND = {
    "key": ["a", "b", "c"],
    "image_path": ["a", "b", "c"],
    "caption": ["one", "two words", " "],
    "image_norm": [9.0, 10.0, 11.0],
}


def inspect_table(folder: Path, table: dict[str, list[Any]], recorded: bool = True, rows: int = 3) -> Inspection:
    pq.write_table(pa.table(table), folder / "metadata.parquet")
    inspection = Inspection("folder", "embed", 1, rows, 0)
    inspector = MetadataInspector(Store(str(folder)), inspection, recorded=recorded)
    report = {"metadata": inspection.add_problem}
    inspector.inspect(ShardParts("0", 0, rows, "its record", {"metadata": "metadata.parquet"}, report))
    inspector.finish(lambda row: f"row {row}")
    return inspection


def test_a_sound_table_has_no_problems(tmp_path: Path) -> None:
    inspection = inspect_table(tmp_path, SOUND)
    assert inspection.problems == []
    assert inspection.notes == ["1 captions are empty, such as shard 0, row 2"]
    assert inspection.looked_at == {"rows of metadata": 3}
    assert inspection.distributions["caption length in characters"]["max"] == 9
    assert inspection.distributions["norm of image embeddings before normalisation"]["mean"] == 10


@pytest.mark.parametrize(
    ("column", "values", "problem"),
    [
        ("key", ["a", None, "c"], "shard 0, row 1: no key"),
        ("image_path", ["a", "c", "b"], "shard 0, row 1: key 'b' is not the row's image_path"),
        ("image_norm", [1.0, -1.0, 1.0], "shard 0, row 1: image_norm is -1"),
        ("image_norm", [1.0, 1.0, float("inf")], "shard 0, row 2: image_norm is inf"),
        ("image_norm", ["1", "1", "1"], "shard 0: column 'image_norm' holds string, not numbers"),
        ("key", [1, 2, 3], "shard 0: column 'key' holds int64, not text"),
    ],
)
def test_a_fault_is_named_by_row(tmp_path: Path, column: str, values: list[Any], problem: str) -> None:
    assert problem in inspect_table(tmp_path, SOUND | {column: values}).problems


def test_another_number_of_rows_is_a_problem(tmp_path: Path) -> None:
    problems = inspect_table(tmp_path, SOUND, rows=4).problems
    assert problems == ["shard 0: metadata.parquet has 3 rows, its record says 4"]


def test_repeated_keys_are_notes(tmp_path: Path) -> None:
    repeated = {"image_path": ["a", "b", "a"], "caption": ["x", "y", "z"]}
    notes = inspect_table(tmp_path, repeated, recorded=False).notes
    assert notes == [
        "shard 0, row 2: has the image_path of row 0",
        "1 rows have the key of an earlier one, such as row 2 and row 0",
    ]


def inspect_states(folder: Path, offsets: list[int], states: np.ndarray) -> Inspection:
    np.save(folder / "offsets.npy", np.array(offsets))
    np.save(folder / "states.npy", states)
    inspection = Inspection("folder", "embed", 1, 3, 0)
    inspector = MetadataInspector(Store(str(folder)), inspection, recorded=True)
    files = {"offsets": "offsets.npy", "token_states": "states.npy"}
    report = dict.fromkeys(files, inspection.add_problem)
    inspector.inspect_token_states(ShardParts("0", 0, 3, "its record", files, report))
    inspector.finish(lambda row: f"row {row}")
    return inspection


def test_sound_token_states_have_no_problems(tmp_path: Path) -> None:
    inspection = inspect_states(tmp_path, [0, 1, 3, 6], np.ones((6, 2), np.float16))
    assert inspection.problems == []
    assert inspection.distributions["token states of a caption"]["mean"] == 2


@pytest.mark.parametrize(
    ("offsets", "bad_state", "problem"),
    [
        ([1, 2, 3, 6], None, "shard 0, row 0: offsets.npy starts at 1, not at 0"),
        ([0, 3, 3, 6], None, "shard 0, row 1: offsets.npy goes from 3 to 3; every row has at least one token state"),
        ([0, 1, 3], None, "shard 0: offsets.npy holds int64 of shape (3,) instead of 4 whole numbers"),
        ([0, 1, 3, 7], None, "shard 0, row 2: states.npy has 6 token states, offsets.npy ends at 7"),
        ([0, 1, 3, 6], 2, "shard 0, row 1: token states hold NaN or infinity"),
    ],
)
def test_a_fault_of_token_states_is_named(
    tmp_path: Path, offsets: list[int], bad_state: int | None, problem: str
) -> None:
    states = np.ones((6, 2), np.float16)
    if bad_state is not None:
        states[bad_state, 1] = np.nan
    assert inspect_states(tmp_path, offsets, states).problems == [problem]


def test_failures_are_counted_by_message(tmp_path: Path) -> None:
    pq.write_table(pa.table({"error": ["no image", "no text", "no image"]}), tmp_path / "failures.parquet")
    store, inspection = Store(str(tmp_path)), Inspection("folder", "embed", 1, 0, 0)
    inspect_failures(store, inspection, "failures.parquet", "0", 3, inspection.add_problem)
    assert (inspection.errors, inspection.problems) == ({"no image": 2, "no text": 1}, [])
    inspect_failures(store, inspection, "failures.parquet", "0", 2, inspection.add_problem)
    assert inspection.problems == ["shard 0: failures.parquet has 3 rows, its record says 2"]
