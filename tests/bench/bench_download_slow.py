"""The slow list: small images from servers that take their time, or for ever; against img2dataset's defaults.

Run in the ordinary environment, as `make bench` does. About 3 minutes a round on 2 cores. The server takes some of
what the machine has, and all three clients the rest.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import random
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import harness
from yarl import URL

from priorkit.pipeline.download.fetching.fetch import Fetcher
from priorkit.pipeline.download.outcomes import FetchError
from priorkit.pipeline.download.settings import DownloadSettings

HOSTS, DEADLINE = 500, 10
AT_ONCE = DownloadSettings().concurrency


@contextlib.contextmanager
def serving() -> Iterator[int]:
    """The port of the server, which is a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("slow_server.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.communicate("")


def url_list(port: int, count: int, *, never: float, dribble: float) -> list[str]:
    """URLs that answer after 0.2 to 3 seconds, but for shares that never do, or do a byte a second."""
    chance = random.Random(0)
    urls = []
    for number in range(count):
        draw = chance.random()
        slow = "never" if draw < never else "dribble" if draw < never + dribble else f"{chance.uniform(0.2, 3):.3f}"
        urls.append(f"http://127.0.{1 + number % HOSTS // 250}.{1 + number % 250}:{port}/{slow}/{number}.jpg")
    return urls


PRIORKIT = """
import json, sys, time
from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.download.stage import download
if __name__ == "__main__":
    settings = DownloadSettings(caption_column=None, allow_private_addresses=True, timeout_seconds=10, retries=0)
    start = time.perf_counter()
    result = download(sys.argv[1], sys.argv[2], settings)
    print(json.dumps([time.perf_counter() - start, result.counts["success"]]))
"""
IMG2DATASET = """
import glob, json, sys, time
from img2dataset import download
if __name__ == "__main__":
    start = time.perf_counter()
    download(url_list=sys.argv[1], output_folder=sys.argv[2], timeout=10, retries=0)
    seconds = time.perf_counter() - start
    counts = [json.load(open(path))["successes"] for path in glob.glob(sys.argv[2] + "/*_stats.json")]
    print(json.dumps([seconds, sum(counts)]))
"""


def run(code: str, urls: list[str]) -> tuple[float, int]:
    """Seconds of one download in a process of its own, and its images."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "list.txt").write_text("\n".join(urls) + "\n")
        command = [sys.executable, "-c", code, f"{name}/list.txt", f"{name}/images"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        seconds, images = json.loads(done.stdout.splitlines()[-1])
        return seconds, images


async def bare(urls: list[str]) -> int:
    """aiohttp alone: fetch and throw away."""
    slots = asyncio.Semaphore(AT_ONCE)
    timeout = aiohttp.ClientTimeout(total=DEADLINE)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:

        async def one(url: str) -> bool:
            async with slots:
                try:
                    async with session.get(url) as response:
                        await response.read()
                except asyncio.TimeoutError:
                    return False
            return True

        return sum(await asyncio.gather(*(one(url) for url in urls)))


class TimedFetcher(Fetcher):
    """Times what the deadline covers."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.longest = 0.0

    async def _attempts(self, url: URL) -> bytes:
        start = time.perf_counter()
        try:
            return await super()._attempts(url)
        finally:
            self.longest = max(self.longest, time.perf_counter() - start)


async def fetch_all(urls: list[str]) -> tuple[float, dict[str, int]]:
    """The longest that any URL takes from when it has its place, and the outcomes."""
    settings = DownloadSettings(allow_private_addresses=True, timeout_seconds=DEADLINE, retries=0)
    async with TimedFetcher(settings, ssl.create_default_context()) as fetcher:
        found = await asyncio.gather(*(fetcher.fetch(url) for url in urls), return_exceptions=True)
    outcomes = collections.Counter(one.outcome if isinstance(one, FetchError) else "success" for one in found)
    return fetcher.longest, dict(outcomes)


def compare(port: int, count: int, rounds: int, results: list[dict[str, Any]]) -> None:
    """Time the three in turns."""
    urls = url_list(port, count, never=0.05, dribble=0)
    figures: dict[str, list[tuple[float, int]]] = {"priorkit": [], "img2dataset": [], "aiohttp": []}
    for _ in range(rounds):
        figures["priorkit"].append(run(PRIORKIT, urls))
        figures["img2dataset"].append(run(IMG2DATASET, urls))
        start = time.perf_counter()
        images = asyncio.run(bare(urls))
        figures["aiohttp"].append((time.perf_counter() - start, images))
    upstream = [seconds for seconds, _ in figures["img2dataset"]]
    for name, label in (
        ("priorkit", "priorkit"),
        ("img2dataset", "img2dataset, defaults"),
        ("aiohttp", "aiohttp alone, nothing decoded or written"),
    ):
        seconds = [one for one, _ in figures[name]]
        harness.report(
            results, bench="slow list", what=label, urls=count, images=[images for _, images in figures[name]],
            seconds=seconds, urls_per_second=[count / one for one in seconds],
            times_img2dataset=harness.paired_ratio(upstream, seconds),
        )  # fmt: skip


def dribbles(port: int, count: int, results: list[dict[str, Any]]) -> None:
    """With 2% that dribble, on which img2dataset never ends."""
    urls = url_list(port, count, never=0.05, dribble=0.02)
    most, outcomes = asyncio.run(fetch_all(urls))
    seconds, images = run(PRIORKIT, urls)
    harness.report(
        results, bench="dribbles", urls=count, images=images, seconds=[seconds], longest_seconds=most, outcomes=outcomes
    )


def main() -> None:
    """Run it."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--urls", type=int, default=10_000, help="length of the list")
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    with serving() as port:
        compare(port, arguments.urls, arguments.rounds, results)
        dribbles(port, arguments.urls, results)
    if not arguments.no_page:
        slow = harness.table(
            [result for result in results if result["bench"] == "slow list"],
            {
                "what": "{what}", "URLs": "{urls:,}", "images": "{images:,.0f}", "seconds": "{seconds:.1f}",
                "URLs/s": "{urls_per_second:.0f}", "times img2dataset": "{times_img2dataset:.2f}",
            },
        )  # fmt: skip
        dribbled = harness.table(
            [result for result in results if result["bench"] == "dribbles"],
            {"URLs": "{urls:,}", "seconds": "{seconds:.1f}", "longest of one URL, seconds": "{longest_seconds:.2f}"},
        )
        body = f"""
Images of 10 kB from {HOSTS} loopback addresses. Each URL answers after 0.2 to 3 seconds, 5% never. All have {DEADLINE}
seconds for a URL and no retries; priorkit may fetch from loopback; otherwise their defaults. The last URLs that never
answer hold the end of each run up for most of their {DEADLINE} seconds.

{slow}

With 2% more that send a byte a second for ever, on which img2dataset never ends:

{dribbled}
"""
        harness.write_page("download-slow", "Downloading a slow list", body, results, ("img2dataset", "aiohttp"))


if __name__ == "__main__":
    main()
