"""One writer for each folder, by a lock of the kernel or by a lease."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from priorkit.pipeline.contract.commit import check_stage
from priorkit.pipeline.contract.lock import LEASE_NAME, lock_folder
from priorkit.pipeline.contract.manifest import Manifest, read_manifest
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import FolderError, InputError

LOCK_THE_FOLDER = """
import sys, time
from priorkit.pipeline.contract.lock import lock_folder
from priorkit.pipeline.contract.storage import Store
with lock_folder(Store(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A folder on disk, and one on an object store."""
    url = str(tmp_path / "folder") if request.param == "local" else f"memory://{uuid.uuid4().hex}"
    store = Store(url)
    yield store
    if not store.is_local and store.fs.exists(store.root):
        store.fs.rm(store.root, recursive=True)


@pytest.fixture
def bucket() -> Iterator[Store]:
    """A folder on an object store."""
    store = Store(f"memory://{uuid.uuid4().hex}")
    yield store
    if store.fs.exists(store.root):
        store.fs.rm(store.root, recursive=True)


def test_a_second_writer_in_another_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LOCK_THE_FOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(FolderError, match="another priorkit process"), lock_folder(Store(str(tmp_path))):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait(600)
        with lock_folder(Store(str(tmp_path))):
            pass
    finally:
        process.kill()
        process.communicate()


def test_the_folder_is_unlocked_after_the_block_even_if_it_fails(store: Store) -> None:
    with pytest.raises(RuntimeError, match="work"), lock_folder(store):
        raise RuntimeError("work")
    with lock_folder(store), pytest.raises(FolderError, match="writing here"), lock_folder(store):
        pass
    with lock_folder(store):
        pass


def _lease(store: Store, *, host: str, pid: int, expires: float) -> None:
    store.write_json(LEASE_NAME, {"owner": "other", "host": host, "pid": pid, "expires": expires})


def test_a_live_lease_excludes_others_and_is_removed_at_the_end(bucket: Store) -> None:
    with lock_folder(bucket):
        lease = bucket.read_json(LEASE_NAME)
        assert lease["pid"] == os.getpid()
        assert 60 < lease["expires"] - time.time() <= 121
        with pytest.raises(FolderError, match=f"process {os.getpid()} on {socket.gethostname()}"), lock_folder(bucket):
            pass
        assert bucket.read_json(LEASE_NAME)["owner"] == lease["owner"]
    assert bucket.names() == []


def test_a_live_lease_of_another_host_is_respected(bucket: Store) -> None:
    _lease(bucket, host="elsewhere", pid=1, expires=time.time() + 60)
    with pytest.raises(FolderError, match="process 1 on elsewhere"), lock_folder(bucket):
        pass


def test_an_expired_lease_is_taken_over(bucket: Store) -> None:
    _lease(bucket, host="elsewhere", pid=1, expires=time.time() - 1)
    with lock_folder(bucket):
        assert bucket.read_json(LEASE_NAME)["pid"] == os.getpid()


def test_the_lease_of_a_dead_process_of_this_host_is_taken_over(bucket: Store) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    _lease(bucket, host=socket.gethostname(), pid=dead.pid, expires=time.time() + 60)
    with lock_folder(bucket):
        assert bucket.read_json(LEASE_NAME)["pid"] == os.getpid()


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"host": 1, "pid": "x", "expires": "y"}'])
def test_a_damaged_lease_is_a_clear_error(bucket: Store, content: str) -> None:
    with bucket.create(LEASE_NAME) as file:
        file.write(content.encode())
    with pytest.raises(InputError, match=r"lease\.json"), lock_folder(bucket):
        pass
    assert json.loads(content) == bucket.read_json(LEASE_NAME)


NO_LOCKS = [37, 38, 95, 524]


@pytest.fixture(params=NO_LOCKS)
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system whose `flock` fails, as on Lustre."""

    def flock(file: object, operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("without_locks")
def test_a_folder_without_locks_gets_a_lease_and_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(str(tmp_path))
    for _ in range(2):
        with lock_folder(store):
            assert read_manifest(store) is None
            assert (
                check_stage(store, Manifest("train", {}, input={})) is None
            )  # the lease does not count as other files
            with pytest.raises(FolderError, match=f"process {os.getpid()} on .* is writing here"), lock_folder(store):
                pass
        assert store.size("lease.json") is None
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{tmp_path}: its file system has no locks (")


@pytest.mark.usefixtures("without_locks")
def test_the_lease_of_a_crashed_process_on_a_folder_without_locks_is_taken_over(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    store = Store(str(tmp_path))
    _lease(store, host=socket.gethostname(), pid=dead.pid, expires=time.time() + 60)
    with lock_folder(store):
        assert store.read_json("lease.json")["pid"] == os.getpid()


def test_a_lease_is_respected_where_locks_work(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    _lease(store, host="elsewhere", pid=1, expires=time.time() + 60)
    with pytest.raises(FolderError, match="process 1 on elsewhere is writing here"), lock_folder(store):
        pass


def test_another_error_of_the_lock_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"), lock_folder(Store(str(tmp_path))):
        pass
