"""Clusters of Ray that a command may meet: stale, foreign, guarded by a token, of another version, with GPUs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

from .conftest import HANG_SECONDS, environment, wait_for
from .synthetic import SMALL_TRAIN, changed, write_embeddings

pytestmark = pytest.mark.slow

TOKEN = "a-token-of-the-tests"
STALE = "127.0.0.1:6399"

MAP = """
import json, os, sys
from priorkit.pipeline.compute.cluster import describe_cluster
from priorkit.pipeline.compute.settings import ComputeSettings
from priorkit.pipeline.errors import PriorkitError
from priorkit.pipeline.compute.parallel import map_shards

def make_worker():
    names = ("GOMP_SPINCOUNT", "RAY_AUTH_MODE")
    return lambda task, following: (task * 2, {"nice": os.nice(0), **{name: os.environ.get(name) for name in names}})

before = dict(os.environ)
compute = ComputeSettings(backend="ray", address=json.loads(sys.argv[1]))
try:
    done = sorted(map_shards(make_worker, [1, 2], compute))
except PriorkitError as error:
    print(json.dumps({"error": str(error)}))
else:
    after = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    kept = all(after[name] == before.get(name) for name in after)
    print(json.dumps({"done": done, "cluster": describe_cluster(compute), "kept": kept}))
"""
"""Maps over two tasks in a worker of the cluster of `compute.address`, and prints what came of it."""


WITHOUT_HELPERS = ("--include-dashboard=false", "--include-log-monitor=false", "--no-monitor")
"""Options of `ray start` that leave out processes which the tests do not need."""
SEPARATOR = "---"
COMMANDS = f"""
import json, sys
from priorkit import cli

codes = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["priorkit", *arguments]
    codes.append(cli._run())
    print({SEPARATOR!r})
print(codes)
"""
"""Runs commands one after the other in a process, which imports torch once, and prints their exit codes last."""


@dataclass
class Home:
    """A user's home and Ray's folder; the latter short, since paths of sockets are."""

    home: Path
    ray: Path

    def variables(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in environment().items() if not name.startswith(("RAY_", "GOMP_"))}
        ours = {"HOME": str(self.home), "RAY_TMPDIR": str(self.ray), "RAY_memory_monitor_refresh_ms": "0"}
        return {**kept, **ours, **more}

    def map(self, address: str | None = None, **variables: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-c", MAP, json.dumps(address)],
            env=self.variables(**variables), capture_output=True, text=True, timeout=HANG_SECONDS,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def processes(self, without: bytes = b"Agent") -> set[int]:
        """Processes of Ray that were started with this folder.

        Args:
            without: a word of those that are left out; where Ray's head is killed, its agents look for it for a minute.
        """
        mark = f"RAY_TMPDIR={self.ray}".encode()
        found = set()
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                title = (path / "cmdline").read_bytes()
                is_ray = b"ray" in title and not (without and without in title)
                if is_ray and mark in (path / "environ").read_bytes().split(b"\0"):
                    found.add(int(path.name))
        return found


@contextlib.contextmanager
def a_home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        made = Home(Path(folder) / "home", Path(folder) / "r")
        made.home.mkdir()
        made.ray.mkdir()
        yield made


@pytest.fixture
def home() -> Iterator[Home]:
    with a_home() as made:
        yield made


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def head(home: Home, port: int, *options: str, program: str = "") -> Iterator[None]:
    """A head that `ray start` makes, in a process group of its own, which ends with the block."""
    code = f"{program}\nimport sys\nfrom ray.scripts.scripts import main\nmain()"
    started = subprocess.Popen(
        [
            sys.executable, "-c", code, "start", "--head", "--block", f"--port={port}", "--num-cpus=1",
            "--disable-usage-stats", f"--ray-client-server-port={free_port()}", *WITHOUT_HELPERS, *options,
        ],
        env=home.variables(RAY_prestart_worker_first_driver="0"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert started.stdout is not None
        said = ""
        while "Ray runtime started" not in said:
            line = started.stdout.readline()
            assert line, said
            said += line
        yield
    finally:
        for pid in home.processes(without=b""):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        started.communicate()


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[Home, int]]:
    """A cluster with a GPU that torch cannot use, of a user who has a token."""
    with a_home() as made:
        (made.home / ".ray").mkdir()
        (made.home / ".ray/auth_token").write_text(TOKEN)
        port = free_port()
        with head(made, port, "--num-gpus=1"):
            yield made, port


def test_without_an_address_a_cluster_of_our_own_works_beside_a_stale_one(home: Home) -> None:
    """The home cannot be written, so no token can be left there; nothing else is, either."""
    (home.ray / "ray").mkdir()
    (home.ray / "ray/ray_current_cluster").write_text(STALE)
    found = home.map(HOME="/proc/nohome")
    worker = {"nice": os.nice(0), "GOMP_SPINCOUNT": "0", "RAY_AUTH_MODE": "token"}
    assert found == {"done": [[2, worker], [4, worker]], "cluster": "1 worker on this machine", "kept": True}
    assert (home.ray / "ray/ray_current_cluster").read_text() == STALE
    assert "no cluster runs on this machine" in home.map("auto")["error"]
    wait_for(lambda: not home.processes())


def test_a_dead_variable_is_named_at_once_and_local_goes_without(home: Home) -> None:
    told = home.map(RAY_ADDRESS=STALE)["error"]
    assert told.startswith(f"cannot join Ray at RAY_ADDRESS='{STALE}': ")
    assert told.endswith("start it there with `ray start --head`, or unset RAY_ADDRESS")
    found = home.map("local", RAY_ADDRESS=STALE, RAY_AUTH_MODE="disabled")
    assert found["cluster"] == "1 worker on this machine (compute.address=local)"
    assert found["done"][0][1]["RAY_AUTH_MODE"] == "disabled"
    assert list(home.home.iterdir()) == []


def test_a_folder_too_long_for_sockets_is_named(home: Home) -> None:
    long = home.ray / ("long" * 25)
    long.mkdir()
    told = home.map(RAY_TMPDIR=str(long))["error"]
    assert "sockets" in told
    assert str(long) in told
    assert "set RAY_TMPDIR to a short local folder" in told


def test_a_cluster_with_a_token_is_joined_or_explained(guarded: tuple[Home, int]) -> None:
    user, port = guarded
    found = user.map("auto")
    assert [value for value, _ in found["done"]] == [2, 4]
    assert found["kept"]
    assert found["cluster"].endswith(f":{port} (compute.address=auto)")
    address = f"127.0.0.1:{port}"
    told = user.map(address)["error"]
    assert "RAY_AUTH_MODE=token sends it the one in ~/.ray/auth_token" in told
    assert TOKEN not in told
    by_variable = user.map(RAY_ADDRESS=address, RAY_AUTH_MODE="token")
    assert by_variable["cluster"] == f"1 worker at {address} (RAY_ADDRESS)"
    assert "and there is none here; set RAY_AUTH_MODE=token" in user.map(address, HOME="/proc/nohome")["error"]
    assert "refuses the token in RAY_AUTH_TOKEN" in user.map("auto", RAY_AUTH_TOKEN="wrong")["error"]
    assert "leave out ray://" in user.map(f"ray://{address}")["error"]


def test_gpus_that_torch_cannot_use_leave_the_cpu_and_the_summary_says_so(
    guarded: tuple[Home, int], tmp_path: Path
) -> None:
    user, port = guarded
    embeddings = write_embeddings(tmp_path / "embeddings", rows=60)
    recipe = tmp_path / "recipe.yaml"
    training = changed(SMALL_TRAIN, steps=2, device="auto").model_dump(mode="json")
    recipe.write_text(json.dumps({"train": training}))

    command = ["train", str(recipe), "--embeddings", str(embeddings), "--prior", str(tmp_path / "prior")]
    options = (["--dry-run"], ["--set", "train.device=cuda"], ["--json"])
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps([[*command, "--workers", "1", *more] for more in options])],
        env=user.variables(RAY_ADDRESS="auto"), capture_output=True, text=True, timeout=HANG_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *_, output, codes = done.stdout.split(SEPARATOR)
    assert json.loads(codes) == [0, 1, 0], done.stderr
    assert "train.device=cuda, but torch can use none of the Ray cluster's 1 GPUs" in done.stderr
    result = json.loads(output)
    assert result["device"].startswith("cpu, ")
    assert result["device"].endswith("; torch can use none of the Ray cluster's 1 GPUs")
    assert f":{port} (RAY_ADDRESS=auto)" in result["cluster"]


def test_another_version_is_told_before_ray_is_called(home: Home) -> None:
    port = free_port()
    with head(home, port, program="import ray; ray.__version__ = '2.11.0'"):
        for address in ("auto", f"127.0.0.1:{port}"):
            told = home.map(address)["error"]
            assert "it runs Ray 2.11.0 on Python" in told
            assert f"this process Ray {ray.__version__} on Python" in told


def test_a_cluster_of_our_own_ends_with_a_driver_that_is_killed(home: Home) -> None:
    code = MAP.replace("[1, 2]", "iter(lambda: print('begun', flush=True) or 1, None)")
    driver = subprocess.Popen(
        [sys.executable, "-c", code, "null"], env=home.variables(), stdout=subprocess.PIPE, text=True
    )
    try:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "begun\n"
        assert len(home.processes()) > 2
    finally:
        driver.kill()
        driver.communicate()
    wait_for(lambda: not home.processes())
    assert not (home.ray / "ray/ray_current_cluster").exists()
    for pid in home.processes(without=b""):
        os.kill(pid, signal.SIGKILL)
