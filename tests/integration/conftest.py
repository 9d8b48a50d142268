"""The real command in a working directory of its own, on a small list whose images a real server holds."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from PIL import Image

from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.download.stage import download

from ..conftest import ImageServer, QuietHandler, UrlList, serving, serving_folder, write_list
from .browser import Browser
from .command_server import Command, CommandServer, serving_commands
from .flaky_server import FlakyServer, serving_flaky

if TYPE_CHECKING:
    from .ray_nodes import RayCluster

PRIORKIT = str(Path(sys.executable).parent / "priorkit")
STAGE_FOLDERS = {"download": "images", "embed": "embeddings", "train": "prior", "evaluate": "evaluation"}
os.environ |= {"RAY_worker_niceness": "0"}  # other tests would starve workers at Ray's own nice 15

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "purple", "orange")
LIST_ROWS = 120
LIST_FAILURES = {7: "gone.jpg", 51: "page.html"}
"""Rows of the list that fail, and what they ask for; one more is refused."""
REFUSED_ROW = 88
HANG_SECONDS = 600
"""Seconds after which a command that has not ended is considered hung. A busy machine needs much less."""

RECIPE = """\
download:
  rows_per_shard: 10
  image_size: 32
  allow_private_addresses: true
  decode_processes: 1
  timeout_seconds: 600
  decode_timeout_seconds: 600
embed:
  clip:
    model: local-dir:{clip}
  token_states: true
  batch_size: 2
  threads: 1
  device: cpu
read:
  validation_fraction: 0.1
  test_fraction: 0.2
train:
  network:
    width: 32
    depth: 1
    heads: 2
  steps: 60
  batch_size: 32
  threads: 1
  device: cpu
  log_every: 5
  validate_every: 20
  checkpoint_every: 5
evaluate:
  draws: 2
  bootstrap_samples: 100
  sample:
    steps: 4
"""


@dataclass
class Gate:
    """An image server that can hold its answers back, so that a download is under way for as long as a test wants."""

    url: str
    requests: list[str]
    folder: Path
    held_from: int | None = None
    """Requests beyond this number wait until the gate is opened."""
    _open: threading.Event = field(default_factory=threading.Event)

    def close_after(self, more: int) -> None:
        """Answer some more requests, then hold back the rest."""
        self._open.clear()
        self.held_from = len(self.requests) + more

    def open(self) -> None:
        self.held_from = None
        self._open.set()

    def wait_until_held(self) -> None:
        assert self.held_from is not None
        limit = self.held_from
        wait_for(lambda: len(self.requests) > limit)

    def pass_through(self) -> None:
        if self.held_from is not None and len(self.requests) > self.held_from:
            self._open.wait(HANG_SECONDS)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds. Fail after `HANG_SECONDS`."""
    end = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@pytest.fixture(scope="session")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    folder = tmp_path_factory.mktemp("served")
    for index in range(LIST_ROWS):
        random = np.random.default_rng(index)
        pixels = np.zeros((40, 48, 3), np.uint8) + random.integers(0, 255, 3, dtype=np.uint8)
        pixels[:20, :16] = random.integers(0, 255, 3, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    (folder / "page.html").write_text("<html>no image</html>")
    gate = Gate("", [], folder)

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            gate.requests.append(self.path)
            gate.pass_through()
            super().do_GET()

    with serving(functools.partial(Handler, directory=str(folder))) as gate.url:
        yield gate


@pytest.fixture(scope="session")
def small_list(gate: Gate) -> pa.Table:
    """120 rows of which 117 give an image; the others fail each in a way of its own."""
    names = [LIST_FAILURES.get(index, f"{index}.png") for index in range(LIST_ROWS)]
    urls = [f"{gate.url}/{name}" for name in names]
    urls[REFUSED_ROW] = "http://127.0.0.1:9/refused.jpg"
    captions = [f"a {COLOURS[index % 8]} square, number {index}" for index in range(LIST_ROWS)]
    return pa.table({"url": urls, "caption": captions})


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
    return {**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


def committed(folder: Path) -> dict[str, bytes]:
    """Every committed file of a stage's folder; timings, locks, checkpoints and the cache of selections left out."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and "stats" not in path.name
        and path.name != ".lock"
        and path.parent.name not in ("state", "selections")
    }


@dataclass
class Workspace:
    """A working directory with a list and a recipe, in which the default folders are used."""

    path: Path
    commands: CommandServer

    @property
    def data(self) -> Path:
        return self.path / "data"

    def folder(self, stage: str) -> Path:
        return self.data / STAGE_FOLDERS[stage]

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command here; no exit code but `code`, and no traceback, is accepted."""
        done = self.commands.run(arguments, self.path, environment())
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)

    def refuses(self, *arguments: str, named: str) -> str:
        """Run a command that must fail, name something in a last line of error, and change no byte here."""
        return self.refuses_each([(arguments, named)])[0]

    def refuses_each(self, cases: Sequence[tuple[tuple[str, ...], str]]) -> list[str]:
        """Run commands that must each fail so, two at a time."""
        before = self.snapshot()
        with ThreadPoolExecutor(2) as pool:
            outputs = list(pool.map(lambda case: self.run(*case[0], code=1).stderr, cases))
        errors = []
        for output, (_, named) in zip(outputs, cases, strict=True):
            *others, error = output.splitlines()
            assert error.startswith("error: "), output
            assert not [line for line in others if "error" in line], output
            assert named in error
            errors.append(error)
        assert self.snapshot() == before
        return errors

    def start(self, *arguments: str) -> Command:
        return self.commands.start(arguments, self.path, environment())

    def snapshot(self) -> dict[str, bytes | None]:
        """Every file and folder below this directory, empty lock files left out."""
        return {
            path.relative_to(self.path).as_posix(): path.read_bytes() if path.is_file() else None
            for path in sorted(self.path.rglob("*"))
            if path.name != ".lock"
        }

    def committed(self, *stages: str) -> dict[str, dict[str, bytes]]:
        """Committed files of some stages, or of all."""
        return {stage: committed(self.folder(stage)) for stage in stages or STAGE_FOLDERS}

    def last_checkpoint(self) -> tuple[str, bytes]:
        path = max((self.folder("train") / "state").iterdir())
        return path.name, path.read_bytes()


def stop(process: subprocess.Popen[str] | Command, number: signal.Signals) -> str:
    """Send a signal on which a command must end so that it can be resumed, and return its errors."""
    process.send_signal(number)
    return wait_for_stop(process)


def wait_for_stop(process: subprocess.Popen[str] | Command) -> str:
    """Wait for the end of a command that a signal has stopped so that it can be resumed, and return its errors."""
    try:
        _, error = process.communicate(timeout=HANG_SECONDS)
    finally:
        process.kill()  # one that did not end must not outlive the test
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert "the same command resumes from there" in error
    return error


@dataclass
class Served:
    """The list that `write_list` writes, its server, which runs until the end of the session, and its images."""

    server: ImageServer
    list: UrlList
    images: Path
    """Folder that `download` made from the list. Tests must not change it."""


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, download_settings: DownloadSettings) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("list")
    with serving_folder(folder / "served") as server:
        url_list, images = write_list(server, folder), folder / "images"
        download(str(url_list.path), str(images), download_settings)
        yield Served(server, url_list, images)


@pytest.fixture(scope="module")
def shared_nodes(request: pytest.FixtureRequest) -> Iterator[RayCluster]:
    """The Ray cluster of a module, which states its size in `NODES`."""
    from .ray_nodes import cluster  # imports Ray

    with cluster(*request.module.NODES) as nodes:
        yield nodes


@pytest.fixture
def nodes(shared_nodes: RayCluster) -> RayCluster:
    """The Ray cluster of the module, with no node missing and no CPU in use."""
    shared_nodes.complete()
    shared_nodes.wait_until_idle()
    return shared_nodes


@pytest.fixture(scope="module")
def flaky_server() -> Iterator[FlakyServer]:
    with serving_flaky() as server:
        yield server


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandServer]:
    with serving_commands(tmp_path_factory.mktemp("commands"), environment()) as server:
        yield server


@pytest.fixture(scope="session")
def make_workspace(
    tmp_path_factory: pytest.TempPathFactory, small_list: pa.Table, tiny_clip: Path, commands: CommandServer
) -> Callable[[], Workspace]:
    def make() -> Workspace:
        path = tmp_path_factory.mktemp("workspace")
        pq.write_table(small_list, path / "urls.parquet")
        (path / "recipe.yaml").write_text(RECIPE.format(clip=tiny_clip))
        return Workspace(path, commands)

    return make


@dataclass
class Finished:
    """An uninterrupted run, and how long each stage of it took."""

    workspace: Workspace
    seconds: dict[str, float]


@pytest.fixture(scope="session")
def finished(make_workspace: Callable[[], Workspace]) -> Finished:
    workspace = make_workspace()
    stages = workspace.json("run", "recipe.yaml")["stages"]
    assert [stage["done_now"] for stage in stages][:3] == [12, 12, 60]
    return Finished(workspace, {stage["stage"]: stage["seconds"] for stage in stages})


@pytest.fixture
def workspace(make_workspace: Callable[[], Workspace]) -> Iterator[Workspace]:
    """An empty working directory with list and recipe."""
    made = make_workspace()
    yield made
    shutil.rmtree(made.path)


@pytest.fixture
def holding(workspace: Workspace, finished: Finished) -> Callable[..., Workspace]:
    """Puts results of the uninterrupted run into the working directory, for some stages or for all."""

    def fill(*stages: str) -> Workspace:
        for stage in stages or STAGE_FOLDERS:
            shutil.copytree(finished.workspace.folder(stage), workspace.folder(stage))
        return workspace

    return fill


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


SERVER = """
import sys
from moto.server import ThreadedMotoServer
from werkzeug.serving import WSGIRequestHandler

WSGIRequestHandler.disable_nagle_algorithm = True
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
"""Tells its port, and ends when its standard input does."""


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def s3_clients(server_url: str) -> Iterator[None]:
    """Let the tests of a module share s3fs's client, which takes half a second to make."""
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def bucket(server_url: str, s3_clients: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The URL of an empty bucket; where the server is stands in the environment, as it does for users."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    name = f"test-{uuid.uuid4().hex}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"


def upload(folder: Path, url: str) -> None:
    store = Store(url)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != ".lock":
            store.fs.pipe_file(f"{store.root}/{path.relative_to(folder).as_posix()}", path.read_bytes())
