"""Real parts on a small scale: an HTTP server, image files, a CLIP with random weights, and folders of each stage."""

# ruff: noqa: E402
# The process that distributes tests to others imports this module first, so fixtures import what takes seconds.
from __future__ import annotations

import gc

gc.disable()  # until the tests are collected: the collector would search millions of objects that all remain

import contextlib
import dataclasses
import functools
import http.server
import io
import json
import logging
import os
import shutil
import signal
import sys
import tarfile
import tempfile
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer.testing
from PIL import Image

from priorkit.pipeline.clip.settings import ClipSettings
from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.embed.settings import EmbedSettings

from .integration.decoder_server import DecoderServer

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # processes that tests start inherit it; nohup makes them ignore SIGHUP

TINY_CLIP_CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}

for _name in ("http_proxy", "https_proxy", "all_proxy"):  # servers of the tests are on this machine
    os.environ.pop(_name, None)
    os.environ.pop(_name.upper(), None)

os.fsync = lambda file: None  # each call waits milliseconds for the disk, and no test ends with a power failure
# takes 30 ms, and `CliRunner` calls it every time
typer.main.get_command = typer.testing._get_command = functools.cache(typer.main.get_command)

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "purple", "orange")


hypothesis.settings.register_profile("priorkit", deadline=None)  # no test depends on the machine's speed
hypothesis.settings.load_profile("priorkit")


def tar_bytes(members: Iterable[tuple[str, bytes]]) -> bytes:
    """A tar of files by name, in order."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fail-on-skip", action="store_true", help="a skipped test fails the run; used by .ci/run")


def share_vocabularies(tokenizer: Any) -> None:
    """Let the instances of a tokenizer class share what they read from their vocabulary, which takes 0.1 s each."""
    original, states = tokenizer.__init__, {}

    @functools.wraps(original)
    def initialise(self: Any, *args: Any, **settings: Any) -> None:
        key = repr((args, settings))
        if key not in states:
            original(self, *args, **settings)
            states[key] = dict(vars(self))
        vars(self).update(states[key])

    tokenizer.__init__ = initialise


def pytest_collection_finish() -> None:
    """Avoid work that would be repeated for each test.

    Modules and tests are excluded from garbage collection, which takes a tenth of a second for each pass over them.
    """
    if "open_clip" in sys.modules:
        share_vocabularies(sys.modules["open_clip"].SimpleTokenizer)
    for logger in logging.getLogger().manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.propagate = True  # pytest adds its handlers to each logger that does not, three times for each test
    gc.freeze()
    gc.enable()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and session.config.getoption("--fail-on-skip") and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


TESTS_OF_COMMANDS = {
    f"tests/integration/test_{name}.py" for name in ("bad_input", "cli_chain", "convert", "docs", "recipes")
}
"""Files that one process runs, because the server of commands and the uninterrupted run cost it 14 CPU seconds."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute tests by file, as xdist does, but keep `TESTS_OF_COMMANDS` together."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc,unused-ignore]
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "commands" if file in TESTS_OF_COMMANDS else file

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread is fastest for tiny tensors, and makes every sum the same."""
    import torch

    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def decoder_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DecoderServer]:
    server = DecoderServer(tmp_path_factory.mktemp("decoders"))
    yield server
    server.close()


@pytest.fixture(scope="module", autouse=True)
def forked_decoders(decoder_server: DecoderServer) -> Iterator[None]:
    """Fork the decoder processes of downloads in this process, instead of starting an interpreter for each."""
    from priorkit.pipeline.download.decoding import decoders

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoders, "subprocess", types.SimpleNamespace(Popen=decoder_server.popen))
        yield


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an open_clip model of random weights, as `local-dir:` takes it."""
    import open_clip
    import safetensors.torch
    import torch

    folder = tmp_path_factory.mktemp("tiny_clip")
    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY_CLIP_CONFIG["model_cfg"])
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(weights, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(TINY_CLIP_CONFIG))
    return folder


@dataclasses.dataclass
class ImageServer:
    """A real HTTP server over a folder, which counts what is asked of it."""

    url: str
    folder: Path
    requests: list[str]


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Answers with the files of a folder, on connections that stay, and logs nothing."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise, a body waits up to 40 ms for the client to acknowledge the header

    def log_message(self, format: str, *args: object) -> None:
        pass


class QuietServer(http.server.ThreadingHTTPServer):
    request_queue_size = 128  # the default of 5 drops connections, which then cost a second each

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no news."""


@contextlib.contextmanager
def serving(handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """A real HTTP server in a thread; yields its URL."""
    server = QuietServer(("127.0.0.1", 0), handler)
    # `shutdown` waits until the server looks for requests again, by default every half second
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def serving_folder(folder: Path) -> Iterator[ImageServer]:
    """An image server over a new folder."""
    folder.mkdir()
    requests: list[str] = []

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            super().do_GET()

    with serving(functools.partial(Handler, directory=str(folder))) as url:
        yield ImageServer(url, folder, requests)


@pytest.fixture
def image_server(tmp_path: Path) -> Iterator[ImageServer]:
    with serving_folder(tmp_path / "served") as server:
        yield server


def picture(index: int, encoding: str = "JPEG", size: int | None = None) -> bytes:
    """An encoded image that no other index gives."""
    random = np.random.default_rng(index)
    side = size or int(random.integers(24, 90))
    pixels = np.zeros((side, side, 3), np.uint8) + random.integers(0, 255, 3, dtype=np.uint8)
    pixels[: side // 2, : side // 3] = random.integers(0, 255, 3, dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, encoding)
    return encoded.getvalue()


@dataclasses.dataclass
class UrlList:
    """A list of URLs on the test server."""

    path: Path
    urls: list[str]
    captions: list[str]


def write_list(image_server: ImageServer, folder: Path) -> UrlList:
    """60 good images in three formats, and three rows that fail: not found, not an image, refused."""
    urls, captions = [], []
    for index in range(60):
        suffix, encoding = (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"))[index % 3]
        (image_server.folder / f"{index}.{suffix}").write_bytes(picture(index, encoding))
        urls.append(f"{image_server.url}/{index}.{suffix}")
        captions.append(f"a {COLOURS[index % 8]} square number {index}")
    (image_server.folder / "page.html").write_text("<html>no image</html>")
    failing = [f"{image_server.url}/gone.jpg", f"{image_server.url}/page.html", "http://127.0.0.1:9/refused.jpg"]
    for position, url in zip((5, 25, 50), failing, strict=True):
        urls.insert(position, url)
        captions.insert(position, "never seen")
    path = folder / "urls.parquet"
    pq.write_table(pa.table({"url": urls, "caption": captions, "licence": ["cc0"] * len(urls)}), path)
    return UrlList(path, urls, captions)


@pytest.fixture
def url_list(image_server: ImageServer, tmp_path: Path) -> UrlList:
    """The list that `write_list` writes, on a server of the test's own."""
    return write_list(image_server, tmp_path)


@pytest.fixture(scope="session")
def download_settings() -> DownloadSettings:
    """Small shards from this machine, decoded by one process, with time for a busy machine."""
    return DownloadSettings(
        rows_per_shard=20, image_size=32, allow_private_addresses=True, concurrency=4, decode_processes=1,
        timeout_seconds=600, decode_timeout_seconds=600,
    )  # fmt: skip


@pytest.fixture
def embed_settings(tiny_clip: Path) -> EmbedSettings:
    """The CLIP of random weights, with token states."""
    return EmbedSettings(
        clip=ClipSettings(model=f"local-dir:{tiny_clip}"), token_states=True, batch_size=8, threads=1, device="cpu"
    )


@dataclasses.dataclass
class SharedFolders:
    """Folders that the stages made once for each of the settings that tests use; tests get copies."""

    path: Path
    made: dict[str, Path] = dataclasses.field(default_factory=dict)

    def images(self, settings: DownloadSettings) -> Path:
        from priorkit.pipeline.download.stage import download

        def make(folder: Path) -> None:
            with serving_folder(folder.with_name("served")) as server:
                download(str(write_list(server, folder.parent).path), str(folder), settings)

        return self._make("images", settings.model_dump_json(), make)

    def embeddings(self, images: DownloadSettings, settings: EmbedSettings) -> Path:
        from priorkit.pipeline.embed.stage import embed

        def make(folder: Path) -> None:
            embed(str(self.images(images)), str(folder), settings)

        return self._make("embeddings", images.model_dump_json() + settings.model_dump_json(), make)

    def _make(self, kind: str, settings: str, make: Callable[[Path], None]) -> Path:
        if (key := f"{kind} {settings}") not in self.made:
            folder = Path(tempfile.mkdtemp(dir=self.path)) / kind
            make(folder)
            self.made[key] = folder
        return self.made[key]


@pytest.fixture(scope="session")
def shared_folders(tmp_path_factory: pytest.TempPathFactory) -> SharedFolders:
    return SharedFolders(tmp_path_factory.mktemp("shared"))


def asks_for_the_list(request: pytest.FixtureRequest) -> bool:
    """Return True if a test uses the list or its server, which its folders must then be made from."""
    return bool({"url_list", "image_server"} & set(request.fixturenames))


@pytest.fixture
def images_folder(
    request: pytest.FixtureRequest, shared_folders: SharedFolders, download_settings: DownloadSettings, tmp_path: Path
) -> Path:
    """Folder that `download` made from `url_list`, with 4 shards, 63 rows and 60 images.

    It is a copy of a shared folder, unless the test asks for the list.
    """
    from priorkit.pipeline.download.stage import download

    folder = tmp_path / "images"
    if asks_for_the_list(request):
        download(str(request.getfixturevalue("url_list").path), str(folder), download_settings)
    else:
        shutil.copytree(shared_folders.images(download_settings), folder)
    return folder


@pytest.fixture
def embeddings_folder(
    request: pytest.FixtureRequest, shared_folders: SharedFolders, images_folder: Path,
    download_settings: DownloadSettings, embed_settings: EmbedSettings, tmp_path: Path,
) -> Path:  # fmt: skip
    """Folder that `embed` made from `images_folder`, with 4 shards and 60 rows; see there for copies."""
    from priorkit.pipeline.embed.stage import embed

    folder = tmp_path / "embeddings"
    if asks_for_the_list(request):
        embed(str(images_folder), str(folder), embed_settings)
    else:
        shutil.copytree(shared_folders.embeddings(download_settings, embed_settings), folder)
    return folder


@pytest.fixture
def folder_bytes() -> Callable[[Path], dict[str, bytes]]:
    """Every committed file of a stage's folder by name; files that hold times, locks and checkpoints left out."""

    def read(folder: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
            and "stats" not in path.name
            and path.name != ".lock"
            and path.parent.name not in ("state", "inputs")
        }

    return read
