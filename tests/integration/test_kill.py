"""`kill -9` at random instants of `priorkit run`, then the same command: the same bytes as if nothing had happened."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from priorkit.pipeline.shards import differing_files, read_manifest
from priorkit.pipeline.storage import Store

from .conftest import STAGE_FOLDERS, Finished, Workspace, wait_for


def changed(folder: Path, known: set[str]) -> bool:
    """Whether a stage has written something into its folder since."""
    return bool(names(folder) - known)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if not path.name.startswith(".")}


def kill_in_stage(workspace: Workspace, stage: str, delay: float) -> bool:
    """Start the run, and kill it some seconds after the stage has begun to write; whether it was still running."""
    folder = workspace.folder(stage)
    known = names(folder)
    process = workspace.start("run", "recipe.yaml")
    wait_for(lambda: changed(folder, known) or process.poll() is not None)
    time.sleep(delay)
    running = process.poll() is None
    process.kill()
    process.communicate(timeout=60)
    return running


def assert_records_hold(workspace: Workspace) -> None:
    """Whatever a record names is whole, at any instant."""
    for stage in STAGE_FOLDERS:
        store = Store(str(workspace.folder(stage)))
        manifest = read_manifest(store)
        for record in manifest.shards.values() if manifest is not None else ():
            assert differing_files(store, record) == [], (stage, record.name)


def kill_in_every_stage(workspace: Workspace, finished: Finished, seed: int) -> None:
    instants = random.Random(seed)
    killed = 0
    for stage in STAGE_FOLDERS:
        delay = instants.uniform(0, 0.8 * finished.seconds[stage])
        killed += kill_in_stage(workspace, stage, delay)
        assert_records_hold(workspace)
    assert killed >= 3, "the kills came too late to mean anything"  # evaluation takes a moment only
    workspace.run("run", "recipe.yaml")
    assert workspace.committed() == finished.workspace.committed()
    assert workspace.last_checkpoint() == finished.workspace.last_checkpoint()
    assert not list(workspace.data.rglob("*tmp"))
    again = workspace.json("run", "recipe.yaml")
    assert [stage["done_now"] for stage in again["stages"]] == [0, 0, 0, 0]


@pytest.mark.timeout(600)
def test_a_kill_in_each_stage_changes_no_byte(workspace: Workspace, finished: Finished) -> None:
    kill_in_every_stage(workspace, finished, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(1, 6))
def test_twenty_kills_change_no_byte(workspace: Workspace, finished: Finished, seed: int) -> None:
    kill_in_every_stage(workspace, finished, seed)
