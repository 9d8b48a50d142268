"""The commands one after the other with their default folders, and `run`, which does all of it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

from priorkit.prior.evaluate.settings import BASELINES

from .conftest import LIST_FAILURES, LIST_ROWS, REFUSED_ROW, STAGE_FOLDERS, Finished, Gate, Workspace, committed

ROWS = LIST_ROWS - len(LIST_FAILURES) - 1


def options(**values: object) -> list[str]:
    """`--set` for each value, two underscores standing for a dot."""
    return [word for name, value in values.items() for word in ("--set", f"{name.replace('__', '.')}={value}")]


def done_now(summary: dict[str, list[dict[str, object]]]) -> list[object]:
    return [stage["done_now"] for stage in summary["stages"]]


@pytest.mark.slow
def test_the_commands_one_by_one_make_what_run_makes(
    workspace: Workspace, finished: Finished, tiny_clip: Path, gate: Gate
) -> None:
    fetch = options(download__rows_per_shard=10, download__allow_private_addresses="true", download__image_size=32)
    downloaded = workspace.json("download", "urls.parquet", *fetch)
    assert (downloaded["units"], downloaded["done_now"], downloaded["rows"]) == (12, 12, LIST_ROWS)
    assert downloaded["counts"] == {"http_4xx": 1, "not_image": 1, "refused": 1, "success": ROWS}

    model = options(embed__clip__model=f"local-dir:{tiny_clip}", embed__token_states="true", embed__threads=1)
    embedded = workspace.run("embed", *model, "--batch-size", "2", "--device", "cpu")
    assert f"{ROWS}" in embedded.stdout
    assert "12 (12 done now" in embedded.stdout

    trained = workspace.json("train", "recipe.yaml")
    assert (trained["stage"], trained["units"], trained["done_now"]) == ("train", 60, 60)
    evaluated = workspace.json("evaluate", "--recipe", "recipe.yaml")
    found = evaluated["metrics"]["splits"]["test"]
    assert [predictor["name"] for predictor in found["predictors"]] == ["prior", *BASELINES]
    assert evaluated["done_now"] == found["rows"] > 2
    assert workspace.committed() == finished.workspace.committed()
    assert workspace.last_checkpoint() == finished.workspace.last_checkpoint()

    asked = len(gate.requests)
    assert workspace.json("download", "urls.parquet", *fetch)["done_now"] == 0
    assert len(gate.requests) == asked


def test_every_row_of_the_list_is_one_row_of_the_tables(finished: Finished, small_list: pa.Table) -> None:
    tables = [pq.read_table(path) for path in sorted(finished.workspace.folder("download").glob("*.parquet"))]
    rows = pa.concat_tables(tables).to_pylist()
    assert [(row["url"], row["caption"]) for row in rows] == list(
        zip(small_list["url"].to_pylist(), small_list["caption"].to_pylist(), strict=True)
    )
    failed = {index for index, row in enumerate(rows) if row["status"] != "success"}
    assert failed == {*LIST_FAILURES, REFUSED_ROW}
    assert all(bool(row["error_message"]) == (index in failed) for index, row in enumerate(rows))


def test_a_second_run_does_nothing(holding: Callable[..., Workspace], gate: Gate) -> None:
    workspace = holding()
    before, asked = workspace.snapshot(), len(gate.requests)
    summary = workspace.json("run", "recipe.yaml")
    assert done_now(summary) == [0, 0, 0, 0]
    assert summary["metrics"]["splits"]["test"]["rows"] > 2
    assert len(gate.requests) == asked
    assert workspace.snapshot() == before


def test_a_lost_embedding_shard_is_all_that_is_redone(holding: Callable[..., Workspace], finished: Finished) -> None:
    workspace = holding()
    for lost in ("img_emb/img_emb_0003.npy", "metadata/metadata_0003.parquet"):
        (workspace.folder("embed") / lost).unlink()
    untouched = workspace.folder("embed") / "img_emb/img_emb_0002.npy"
    before = untouched.stat().st_mtime_ns
    states = {row["stage"]: row["state"] for row in workspace.json("status", "recipe.yaml")}
    assert "1 shards lack files" in states["embed"]
    assert done_now(workspace.json("run", "recipe.yaml")) == [0, 1, 0, 0]
    assert workspace.committed() == finished.workspace.committed()
    assert untouched.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_lost_image_shard_is_all_that_is_redone(holding: Callable[..., Workspace], finished: Finished) -> None:
    workspace = holding()
    (workspace.folder("download") / "00004.tar").unlink()
    assert done_now(workspace.json("run", "recipe.yaml")) == [1, 0, 0, 0]
    assert workspace.committed() == finished.workspace.committed()


@pytest.mark.slow
def test_a_list_that_has_grown_gives_new_shards_only(holding: Callable[..., Workspace], gate: Gate) -> None:
    workspace = holding("download", "embed")
    rows = pq.read_table(workspace.path / "urls.parquet")
    more = pa.table({"url": [f"{gate.url}/3.png"] * 4, "caption": ["one more"] * 4})
    pq.write_table(pa.concat_tables([rows, more]), workspace.path / "urls.parquet")
    asked = len(gate.requests)
    assert done_now(workspace.json("run", "recipe.yaml", "--until", "embed")) == [1, 1]
    assert gate.requests[asked:] == ["/3.png"] * 4


def test_dry_runs_and_looks_write_nothing(workspace: Workspace, holding: Callable[..., Workspace]) -> None:
    before = workspace.snapshot()
    plans = workspace.json("run", "recipe.yaml", "--dry-run")
    assert [plan["stage"] for plan in plans] == ["download", *list(STAGE_FOLDERS)[1:]]
    assert (plans[0]["pending_units"], plans[0]["pending_rows"]) == (12, LIST_ROWS)
    assert all("unknown" in plan for plan in plans[1:])
    fetch = options(download__rows_per_shard=50)
    assert workspace.json("download", "urls.parquet", "--dry-run", *fetch, "--limit", "60")["units"] == 2
    assert {row["state"] for row in workspace.json("status")} == {"not started"}
    assert workspace.snapshot() == before

    holding("download", "embed")
    before = workspace.snapshot()
    assert workspace.json("train", "recipe.yaml", "--dry-run")["pending_units"] == 60
    plans = workspace.json("run", "recipe.yaml", "--dry-run")
    assert [plan.get("pending_units") for plan in plans] == [0, 0, 60, None]
    assert "data/prior" in workspace.run("run", "recipe.yaml", "--dry-run").stdout
    assert workspace.snapshot() == before


@pytest.mark.slow
def test_looking_at_a_finished_run_changes_nothing(
    holding: Callable[..., Workspace], finished: Finished, tiny_clip: Path
) -> None:
    workspace = holding()
    before = workspace.snapshot()
    states = workspace.json("status", "recipe.yaml")
    assert [row["state"] for row in states] == ["up to date"] * 4
    assert [row["rows"] for row in states][:2] == [LIST_ROWS, ROWS]
    assert "up to date" in workspace.run("status", "recipe.yaml").stdout
    with ThreadPoolExecutor(2) as pool:
        inspections = pool.map(lambda folder: workspace.json("inspect", f"data/{folder}"), STAGE_FOLDERS.values())
    for stage, found in zip(STAGE_FOLDERS, inspections, strict=True):
        assert (found["stage"], found["problems"]) == (stage, [])
    shown = workspace.run("inspect", "data/images").stdout
    assert "sound" in shown
    assert "http_4xx" in shown
    plan = workspace.json("evaluate", "--recipe", "recipe.yaml", "--dry-run")
    assert plan["pending_units"] == 0
    plan = workspace.json("embed", "--dry-run", *options(
        embed__clip__model=f"local-dir:{tiny_clip}", embed__token_states="true", embed__threads=1, embed__batch_size=2
    ))  # fmt: skip
    assert plan["pending_units"] == 0
    assert workspace.snapshot() == before


def test_damage_is_found_and_named(holding: Callable[..., Workspace]) -> None:
    workspace = holding("embed")
    damaged = workspace.folder("embed") / "text_emb/text_emb_0005.npy"
    data = bytearray(damaged.read_bytes())
    data[-3] ^= 1
    damaged.write_bytes(data)
    done = workspace.run("inspect", "data/embeddings", "--json", code=1)
    assert '"shard 0005: text_emb/text_emb_0005.npy differs from what was committed"' in done.stdout
    assert "1 problems" in workspace.run("inspect", "data/embeddings", code=1).stdout


@pytest.mark.slow
def test_run_stops_after_the_stage_that_is_named(workspace: Workspace, finished: Finished) -> None:
    assert done_now(workspace.json("run", "recipe.yaml", "--until", "download")) == [12]
    assert workspace.committed("download") == finished.workspace.committed("download")
    assert {path.name for path in workspace.data.iterdir()} == {"images"}


@pytest.mark.slow
def test_a_limit_is_lifted_by_the_same_command_without_it(
    holding: Callable[..., Workspace], finished: Finished
) -> None:
    workspace = holding("embed")
    first = workspace.json("train", "recipe.yaml", "--limit", "23")
    assert first["done_now"] == 23
    error = workspace.run("evaluate", code=1).stderr
    assert "training has not ended" in error
    assert workspace.json("train", "recipe.yaml")["done_now"] == 37
    assert workspace.committed("train") == finished.workspace.committed("train")
    assert workspace.last_checkpoint() == finished.workspace.last_checkpoint()


@pytest.mark.slow
def test_a_limit_on_rows_is_lifted_too(workspace: Workspace, finished: Finished) -> None:
    assert done_now(workspace.json("run", "recipe.yaml", "--until", "embed", "--limit", "34")) == [4, 4]
    assert done_now(workspace.json("run", "recipe.yaml", "--until", "embed")) == [9, 9]
    for stage in ("download", "embed"):
        assert committed(workspace.folder(stage)) == committed(finished.workspace.folder(stage))


def test_samples_are_drawn_for_captions(holding: Callable[..., Workspace]) -> None:
    workspace = holding("train")
    arguments = ("sample", "data/prior", "a red square", "a blue circle", "--steps", "5")
    summary = workspace.json(*arguments, "--output", "out/first.npy")
    assert summary["shape"] == [2, 16]
    drawn = np.load(workspace.path / "out/first.npy", allow_pickle=False)
    assert (drawn.shape, drawn.dtype) == ((2, 16), np.float32)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, atol=1e-5)
    shown = workspace.run(*arguments, "--output", "second.safetensors").stdout
    assert "a red square" in shown
    assert "wrote second.safetensors: float32 [2, 16]" in shown
    again = safetensors.numpy.load_file(workspace.path / "second.safetensors")
    np.testing.assert_array_equal(again["image_embed"], drawn)
