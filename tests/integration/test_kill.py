"""`kill -9` at random instants of a command, then the same again: the same bytes as if nothing had happened.

And Ctrl-C or SIGTERM in the middle of `priorkit embed`, which has threads and Ray's processes to end.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from priorkit.pipeline.compute import read_ahead
from priorkit.pipeline.compute.read_ahead import DecodeAhead
from priorkit.pipeline.contract.manifest import differing_files, read_manifest
from priorkit.pipeline.contract.storage import Store

from .conftest import HANG_SECONDS, PRIORKIT, STAGE_FOLDERS, Finished, Gate, Workspace, environment, stop, wait_for


def changed(folder: Path, known: set[str]) -> bool:
    """Whether a stage has written something into its folder since."""
    return bool(names(folder) - known)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if not path.name.startswith(".")}


def kill_in_stage(
    workspace: Workspace, stage: str, delay: float, command: tuple[str, ...] = ("run", "recipe.yaml")
) -> bool:
    """Start a command, and kill it some seconds after the stage has begun to write; whether it was still running."""
    folder = workspace.folder(stage)
    known = names(folder)
    process = workspace.start(*command)
    wait_for(lambda: changed(folder, known) or process.poll() is not None)
    time.sleep(delay)
    running = process.poll() is None
    process.kill()
    process.communicate(timeout=HANG_SECONDS)
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
    killed = set()
    for stage in (*STAGE_FOLDERS, "evaluate"):  # evaluation twice: it is short, and no other test kills it
        delay = instants.uniform(0, 0.8 * finished.seconds[stage])
        while not (hit := kill_in_stage(workspace, stage, delay)) and delay > 0.02:
            shutil.rmtree(workspace.folder(stage))  # the run was over before: the stage once more, and sooner
            delay /= 2
        if hit:
            killed.add(stage)
        assert_records_hold(workspace)
    assert killed >= {"download", "embed", "train"}, "the kills came too late to mean anything"
    workspace.run("run", "recipe.yaml")
    assert workspace.committed() == finished.workspace.committed()
    assert workspace.last_checkpoint() == finished.workspace.last_checkpoint()
    assert not list(workspace.data.rglob("*tmp"))
    again = workspace.json("run", "recipe.yaml")
    assert [stage["done_now"] for stage in again["stages"]] == [0, 0, 0, 0]


@pytest.mark.slow
def test_a_run_in_an_interpreter_of_its_own_writes_the_same_bytes(workspace: Workspace, finished: Finished) -> None:
    """The other commands of these tests are forked from one process, and so share its hash seed."""
    command = [PRIORKIT, "run", "recipe.yaml"]
    done = subprocess.run(command, cwd=workspace.path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert workspace.committed() == finished.workspace.committed()
    assert workspace.last_checkpoint() == finished.workspace.last_checkpoint()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_kill_in_each_stage_changes_no_byte(workspace: Workspace, finished: Finished, seed: int) -> None:
    kill_in_every_stage(workspace, finished, seed)


@pytest.fixture
def embed_command(tiny_clip: Path) -> tuple[str, ...]:
    """What the recipe says of `embed`, as a command of its own."""
    settings = {"token_states": "true", "batch_size": 2, "threads": 1, "device": "cpu"}
    options = [option for name, value in settings.items() for option in ("--set", f"embed.{name}={value}")]
    return ("embed", "--model", f"local-dir:{tiny_clip}", *options)


def assert_embedded(workspace: Workspace, finished: Finished) -> None:
    assert workspace.committed("embed") == finished.workspace.committed("embed")
    assert not list(workspace.data.rglob("*tmp"))


@pytest.mark.slow
def test_twenty_kills_of_embed_change_no_byte(
    holding: Callable[..., Workspace], finished: Finished, embed_command: tuple[str, ...]
) -> None:
    """Kill after kill of the same work until it is done, then anew, until there were twenty."""
    workspace = holding("download")
    instants = random.Random(7)
    seconds = finished.seconds["embed"]
    killed = 0
    while killed < 20:
        running = kill_in_stage(workspace, "embed", instants.uniform(0, seconds), embed_command)
        killed += running
        assert_records_hold(workspace)
        if not running or killed == 20:
            workspace.run(*embed_command)
            assert_embedded(workspace, finished)
            shutil.rmtree(workspace.folder("embed"))


@pytest.mark.slow
def test_twenty_kills_of_download_change_no_byte_and_fetch_no_finished_shard_again(
    workspace: Workspace, finished: Finished, gate: Gate
) -> None:
    """Kill after kill of the same work until it is done, then anew, until there were twenty."""
    settings = (
        "rows_per_shard=10", "image_size=32", "allow_private_addresses=true", "concurrency=2", "decode_processes=1"
    )  # fmt: skip
    command = ("download", "urls.parquet", *(f"--set=download.{setting}" for setting in settings))
    store = Store(str(workspace.folder("download")))
    instants = random.Random(3)
    killed = 0
    while killed < 20:
        manifest = read_manifest(store)
        done = set() if manifest is None else {int(name) for name in manifest.shards}
        gate.requests.clear()
        running = kill_in_stage(workspace, "download", instants.uniform(0, finished.seconds["download"]), command)
        killed += running
        assert_records_hold(workspace)
        again = {int(name) // 10 for path in gate.requests if (name := path.strip("/").partition(".")[0]).isdigit()}
        assert not again & done
        if not running or killed == 20:
            workspace.run(*command)
            assert workspace.committed("download") == finished.workspace.committed("download")
            assert not list(workspace.data.rglob("*tmp"))
            shutil.rmtree(workspace.folder("download"))


@pytest.fixture
def started(workspace: Workspace) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts commands in a process group of their own, as a shell does, and sees to it that none of theirs is left."""
    mark = f"PRIORKIT_TEST_MARK={uuid.uuid4().hex}"

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [PRIORKIT, *arguments],
            cwd=workspace.path, env={**environment(), **dict([mark.split("=")])}, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    yield start
    left = marked_processes(mark)
    end = time.monotonic() + HANG_SECONDS
    while left and time.monotonic() < end:
        time.sleep(0.2)
        left = marked_processes(mark)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def marked_processes(mark: str) -> list[int]:
    """Processes that run with a mark in their environment, which children inherit."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            marked = mark.encode() in path.read_bytes().split(b"\0")
        except OSError:  # it has ended, or it is not ours
            continue
        if marked:
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "number"), [(0, signal.SIGINT), (0, signal.SIGTERM), (2, signal.SIGTERM)])
def test_embed_stops_before_its_work_is_done_and_goes_on_later(
    holding: Callable[..., Workspace], finished: Finished, embed_command: tuple[str, ...],
    started: Callable[..., subprocess.Popen[str]], number: signal.Signals, workers: int,
) -> None:  # fmt: skip
    workspace = holding("download")
    folder = workspace.folder("embed")
    process = started(*embed_command, *(("--workers", str(workers)) if workers else ()))
    wait_for(lambda: (folder / "shards/0001.json").exists() or process.poll() is not None)
    stop(process, number)
    assert_records_hold(workspace)
    assert 2 <= len(list((folder / "shards").iterdir())) < 12, "too late to mean anything"
    assert workspace.json(*embed_command)["done_now"] < 12
    assert_embedded(workspace, finished)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_reaches_rays_processes_too(
    holding: Callable[..., Workspace], finished: Finished, embed_command: tuple[str, ...],
    started: Callable[..., subprocess.Popen[str]],
) -> None:  # fmt: skip
    workspace = holding("download")
    process = started(*embed_command, "--workers", "2")
    wait_for(lambda: (workspace.folder("embed") / "shards/0001.json").exists() or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    workspace.run(*embed_command)
    assert_embedded(workspace, finished)


def test_a_read_that_hangs_does_not_hold_who_wants_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "_STOP_SECONDS", 0.1)
    hangs, released, decodable = threading.Event(), threading.Event(), threading.Semaphore(2)
    reads_ended: list[bool] = []
    decoded: list[int] = []

    def read(task: str) -> Iterator[int]:
        yield from range(20)
        hangs.set()
        reads_ended.append(released.wait(HANG_SECONDS))

    def decode(number: int) -> int:
        decodable.acquire()
        decoded.append(number)
        return number

    ahead = DecodeAhead(read, decode, threads=1, depth=20)
    samples = ahead.samples("a", None)
    assert next(samples) == 0
    hangs.wait()
    try:
        samples.close()  # type: ignore[attr-defined]
        assert reads_ended == [], "waited for the read"
        decodable.release(20)
        ahead._threads.shutdown()
        assert len(decoded) <= 3, "what nobody will take was decoded"
    finally:
        decodable.release(20)  # a thread that waits would keep the interpreter from ending
        released.set()
