"""Pool of decoder processes: the cost of a crash, a hang, or the end of either side."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from priorkit.pipeline.compute.device import available_cores
from priorkit.pipeline.download.decoding import decoders as module
from priorkit.pipeline.download.decoding.decoders import Decoders
from priorkit.pipeline.download.decoding.resize import ImageResizer
from priorkit.pipeline.download.outcomes import ImageError, ResizedImage
from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.errors import PriorkitError

SETTINGS = DownloadSettings(image_size=32, decode_processes=2)
RunWithDecoders = Callable[[Callable[[Decoders], Coroutine[Any, Any, None]]], None]
ONE = SETTINGS.model_copy(update={"decode_processes": 1})


@pytest.fixture(scope="module", autouse=True)
def forked_decoders() -> None:
    """Nothing: the tests of this file start real processes."""


def body(seed: int = 0, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (60, 50, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def children(pid: int | None = None) -> set[int]:
    """Running children of a process."""
    found = set()
    for task in Path(f"/proc/{pid or os.getpid()}/task").iterdir():
        found |= {int(child) for child in (task / "children").read_text().split()}
    return found


def state(pid: int) -> str:
    """State letter of a process in /proc; empty once it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end, "the condition never became true"
        await asyncio.sleep(0.01)


def with_decoders(settings: DownloadSettings, work: Callable[[Decoders, set[int]], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine with ready decoders, and check that no process and no open file remains."""
    gc.collect()  # files that earlier tests left open must not be closed in between
    before, descriptors = children(), len(os.listdir("/proc/self/fd"))

    async def inside() -> None:
        async with Decoders(settings) as decoders:
            await decoders.decode(body())
            processes = children() - before
            assert len(processes) == settings.decode_processes
            await until(lambda: all(os.readlink(f"/proc/{pid}/fd/2") == os.devnull for pid in processes))
            await asyncio.gather(*(decoders.decode(body()) for _ in range(8)))
            await work(decoders, processes)

    async def outside() -> None:
        open_files = len(os.listdir("/proc/self/fd"))
        await inside()
        assert len(os.listdir("/proc/self/fd")) == open_files

    asyncio.run(outside())
    assert children() == before
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.fixture(scope="module")
def run_with_decoders() -> Iterator[RunWithDecoders]:
    """Run coroutines with two decoders that the tests share; the other tests check what a pool leaves behind."""
    loop, decoders = asyncio.new_event_loop(), Decoders(SETTINGS)

    def run(work: Callable[[Decoders], Coroutine[Any, Any, None]]) -> None:
        loop.run_until_complete(work(decoders))

    loop.run_until_complete(decoders.__aenter__())
    yield run
    loop.run_until_complete(decoders.__aexit__(None, None, None))
    loop.close()


def test_images_and_failures_are_those_of_the_resizer(run_with_decoders: RunWithDecoders) -> None:
    async def work(decoders: Decoders) -> None:
        resize = ImageResizer(SETTINGS)
        bodies = [body(seed, kind) for seed in range(10) for kind in ("PNG", "JPEG", "WEBP")]
        images = await asyncio.gather(*(decoders.decode(one) for one in bodies))
        assert images == [resize(one) for one in bodies]
        assert len({image.data for image in images}) == 30
        for bad, outcome in ((b"<html>", "not_image"), (body()[:50], "decode")):
            with pytest.raises(ImageError) as error:
                await decoders.decode(bad)
            assert error.value.outcome == outcome

    run_with_decoders(work)


def test_boxes_go_with_their_image(run_with_decoders: RunWithDecoders) -> None:
    async def work(decoders: Decoders) -> None:
        boxes = [[[0.0, 0.0, 1.0, number / 10]] if number % 2 else [] for number in range(8)]
        images = await asyncio.gather(*(decoders.decode(body(), each) for each in boxes))
        assert images == [ImageResizer(SETTINGS)(body(), each) for each in boxes]
        assert len({image.data for image in images}) == 5

    run_with_decoders(work)


def test_bodies_of_many_megabytes_pass(run_with_decoders: RunWithDecoders) -> None:
    async def work(decoders: Decoders) -> None:
        padded = [body(seed) + bytes(5_000_000) for seed in range(6)]  # several times the buffer of the socket
        images = await asyncio.gather(*(decoders.decode(one) for one in padded))
        assert images == [ImageResizer(SETTINGS)(body(seed)) for seed in range(6)]

    run_with_decoders(work)


def test_a_decoder_that_is_killed_costs_one_image() -> None:
    async def work(decoders: Decoders, processes: set[int]) -> None:
        others = children() - processes
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        answers = [asyncio.create_task(decoders.decode(body(seed))) for seed in range(20)]
        await asyncio.sleep(0.1)  # each process has two images now
        victim, other = processes
        os.kill(victim, signal.SIGKILL)
        os.kill(other, signal.SIGCONT)
        results = await asyncio.gather(*answers, return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        assert [str(failure) for failure in failures] == ["decode: the decoder was ended by SIGKILL"]
        assert isinstance(failures[0], ImageError)
        assert len({result.data for result in results if isinstance(result, ResizedImage)}) == 19
        await until(lambda: len(children() - others - {victim}) >= 2)
        assert await decoders.decode(body(99)) == ImageResizer(SETTINGS)(body(99))

    with_decoders(SETTINGS, work)


def test_a_decoder_that_hangs_costs_one_image() -> None:
    async def work(decoders: Decoders, processes: set[int]) -> None:
        (pid,) = processes
        os.kill(pid, signal.SIGSTOP)
        answers = [asyncio.create_task(decoders.decode(body(seed))) for seed in range(5)]
        results = await asyncio.gather(*answers, return_exceptions=True)
        assert str(results[0]) == "decode: the decoder hung for 2 s"
        assert [type(result) for result in results[1:]] == [ResizedImage] * 4

    with_decoders(ONE.model_copy(update={"decode_timeout_seconds": 2.0}), work)


def test_an_idle_decoder_that_dies_costs_nothing() -> None:
    async def work(decoders: Decoders, processes: set[int]) -> None:
        known, (pid,) = children(), processes
        os.kill(pid, signal.SIGSEGV)
        await until(lambda: bool(children() - known))
        assert await decoders.decode(body(1)) == ImageResizer(SETTINGS)(body(1))

    with_decoders(ONE, work)


def test_an_image_beyond_the_memory_limit_fails_and_the_decoder_survives() -> None:
    file = io.BytesIO()
    Image.new("RGBA", (4000, 3000), (1, 2, 3, 4)).save(file, "PNG", compress_level=1)  # putting it on white takes 1 GB

    async def work(decoders: Decoders, processes: set[int]) -> None:
        with pytest.raises(ImageError, match=r"decode: .*(allocate|memory)"):
            await decoders.decode(file.getvalue())
        await decoders.decode(body())
        assert all(state(pid) for pid in processes)

    with_decoders(ONE.model_copy(update={"decode_memory_bytes": 1_000_000_000}), work)


def test_opencv_applies_the_limit_of_pixels_too() -> None:
    """OpenCV reads headers that Pillow cannot read, and they may state too many pixels."""
    bomb = struct.pack("<2sIHHI", b"BM", 1000, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 44, 90, 90, 1, 24, *[0] * 6)

    async def work(decoders: Decoders, processes: set[int]) -> None:
        with pytest.raises(ImageError) as error:
            await decoders.decode(bomb + bytes(90 * 90 * 3))
        assert error.value.outcome == "too_many_pixels"

    with_decoders(ONE.model_copy(update={"max_pixels": 5000}), work)


def test_cancelled_images_get_no_answer(run_with_decoders: RunWithDecoders) -> None:
    async def work(decoders: Decoders) -> None:
        answers = [asyncio.create_task(decoders.decode(body(seed))) for seed in range(20)]
        await asyncio.sleep(0)
        for answer in answers[::2]:
            answer.cancel()
        results = await asyncio.gather(*answers, return_exceptions=True)
        assert results[1::2] == [ImageResizer(SETTINGS)(body(seed)) for seed in range(1, 20, 2)]

    run_with_decoders(work)


def test_decoders_that_cannot_start_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with Decoders(SETTINGS) as decoders:
            for _ in range(2):
                with pytest.raises(PriorkitError, match="no process to decode images can be started"):
                    await decoders.decode(body())

    monkeypatch.setattr(module, "_PROGRAM", "raise SystemExit('no luck')")
    with pytest.raises(PriorkitError, match="ended with code 1; no luck"):
        asyncio.run(_first_decode())
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    asyncio.run(run())


async def _first_decode() -> None:
    async with Decoders(ONE) as decoders:
        await decoders.decode(body())


def test_without_a_number_there_is_a_process_for_each_available_core() -> None:
    async def run() -> int:
        async with Decoders(DownloadSettings(decode_processes=0)) as decoders:
            return len(decoders._workers)

    assert asyncio.run(run()) == available_cores()


PARENT = """
import asyncio, signal, sys
from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.download.decoding.decoders import Decoders

async def main():
    async with Decoders(DownloadSettings(decode_processes=2)) as decoders:
        body = sys.stdin.buffer.read()
        await asyncio.gather(*(decoders.decode(body) for _ in range(8)))
        print("ready", flush=True)
        while True:
            await asyncio.gather(*(decoders.decode(body) for _ in range(8)))

signal.signal(signal.SIGINT, signal.default_int_handler)  # also if the tests run in the background of a shell
try:
    asyncio.run(main())  # no `__main__` guard: no process imports this script again
except KeyboardInterrupt:
    sys.exit(3)
"""


@contextlib.contextmanager
def parent() -> Any:
    """A script with two busy decoders, and their process ids."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(body())
            process.stdin.close()
            process.stdin = None
            assert process.stdout.readline() == b"ready\n"
            yield process, children(process.pid)
        finally:
            process.kill()


def test_no_decoder_outlives_a_parent_that_is_killed() -> None:
    """One decoder is busy then, and the other is stopped."""
    with parent() as (process, pids):
        running, stopped = pids
        os.kill(stopped, signal.SIGSTOP)
        process.kill()
        process.wait()
        asyncio.run(until(lambda: state(running) in ("", "Z")))
        os.kill(stopped, signal.SIGCONT)
        asyncio.run(until(lambda: all(state(pid) in ("", "Z") for pid in pids)))


def test_an_interrupt_at_the_terminal_does_not_reach_the_decoders() -> None:
    with parent() as (process, pids):
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=600)
        assert process.returncode == 3
        assert not re.search(rb"Traceback|Error", said), said
        assert all(state(pid) in ("", "Z") for pid in pids)
