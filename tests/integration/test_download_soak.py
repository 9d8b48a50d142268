"""A long download of hostile URLs: memory and open files stay flat, and every row is accounted for once."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.download.stage import download

from .hostile_server import BEHAVIOURS, MAX_BYTES, ROBOTS, Places

pytestmark = pytest.mark.slow

ROWS, ROWS_PER_SHARD = 100_000, 10_000
DEADLINE = 5
"""Half of the default, for the sake of the test's length: each shard ends with some that never do."""
CONCURRENCY = 256
"""What one server in Python, on the machine of the download, answers within the deadline."""
PLAIN_SHARE = 5
"""How many ordinary images there are for each behaviour."""


@pytest.fixture(scope="module", autouse=True)
def forked_decoders() -> None:
    """Nothing: `Watch` counts decoder processes, which must be children of this process."""


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Places]:
    """The hostile server, as a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("hostile_server.py")), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield Places(**json.loads(process.stdout.readline()))
        process.communicate("")


def mix(places: Places) -> list[tuple[str | None, tuple[str, ...]]]:
    """One round of the mix: URLs, `{n}` in them for a number, and the outcomes that they may have."""
    urls: list[tuple[str | None, tuple[str, ...]]] = []
    for name, behaviour in BEHAVIOURS.items():
        outcomes = behaviour.image_outcomes if behaviour.outcome == "success" else (behaviour.outcome,)
        urls.append((f"http://127.0.0.{1 + len(urls) % 50}:{places.plain}/{name}?{{n}}", outcomes))
        urls += [(f"http://127.0.2.{1 + len(urls) % 250}:{places.plain}/image?{{n}}", ("success",))] * PLAIN_SHARE
    urls += [(f"http://{host}:{places.plain}/image", (outcome,)) for host, (outcome, _) in ROBOTS.items()]
    for port, outcome in (("trusted", "success"), ("expired", "tls"), ("mute", "timeout"), ("rude", "connection")):
        urls.append((f"https://127.0.0.1:{getattr(places, port)}/image?{{n}}", (outcome,)))
    return [*urls, (None, ("empty_url",)), ("file:///etc/passwd?{n}", ("bad_scheme",)), ("no url", ("bad_scheme",))]


class Watch:
    """Resident memory and open files of this process and the children that it starts from now on, twice a second."""

    def __init__(self) -> None:
        self._others = children()
        self.memory: list[float] = []
        self.files: list[int] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            with contextlib.suppress(OSError):  # a child that has just ended
                pids = {os.getpid(), *children()} - self._others
                pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
                self.memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
            self.files.append(len(os.listdir("/proc/self/fd")))


def resident(pid: int) -> float:
    """Megabytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def children() -> set[int]:
    """Processes that any thread of this one started."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(pid) for task in tasks for pid in task.read_text().split()}


def test_a_hundred_thousand_hostile_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path) as places:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        templates = mix(places)
        rows = [templates[number % len(templates)] for number in range(ROWS)]
        urls = [url and url.replace("{n}", str(number)) for number, (url, _) in enumerate(rows)]
        pq.write_table(pa.table({"url": pa.array(urls, pa.string())}), tmp_path / "list.parquet")
        settings = DownloadSettings(
            caption_column=None, allow_private_addresses=True, robots_txt=True, max_bytes=MAX_BYTES,
            timeout_seconds=DEADLINE, rows_per_shard=ROWS_PER_SHARD, concurrency=CONCURRENCY,
        )  # fmt: skip
        start = time.monotonic()
        with Watch() as watch:
            result = download(str(tmp_path / "list.parquet"), str(tmp_path / "images"), settings)
        seconds = time.monotonic() - start
    found = [row for path in sorted((tmp_path / "images").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    outcomes = [(row["error_message"] or "success").partition(":")[0] for row in found]
    wrong = collections.Counter(
        (template[0], outcome) for template, outcome in zip(rows, outcomes, strict=True) if outcome not in template[1]
    )
    tenth = len(watch.memory) // 10
    before, after = max(watch.memory[: tenth + 1]), max(watch.memory[tenth + 1 :])
    print(f"{seconds:.0f} s, {before:.0f} MB then {after:.0f} MB, at most {max(watch.files):,} files")
    print(f"{sum(wrong.values())} wrong: {wrong.most_common(20)}")
    assert [row["url"] for row in found] == urls
    assert result.rows == sum(result.counts.values()) == ROWS
    assert collections.Counter(outcomes) == result.counts
    assert sum(wrong.values()) <= ROWS // 1000  # a busy machine makes a timeout of this and that
    assert after < before * 1.1
    assert max(watch.files) < 4 * CONCURRENCY
