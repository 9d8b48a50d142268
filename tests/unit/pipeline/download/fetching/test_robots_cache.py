"""Cache of robots.txt: one read for each origin, also when reads fail or callers give up."""

from __future__ import annotations

import asyncio

import pytest
from yarl import URL

from priorkit.pipeline.download.fetching import robots_cache
from priorkit.pipeline.download.fetching.robots_cache import RobotsCache

US = "priorkit/0.1 (a contact)"


@pytest.mark.parametrize(("bound", "most"), [("_MOST_ORIGINS", 2), ("_MOST_BYTES", 650)])
def test_each_origin_is_read_once_and_the_oldest_is_evicted(
    monkeypatch: pytest.MonkeyPatch, bound: str, most: int
) -> None:
    monkeypatch.setattr(robots_cache, bound, most)
    asked: list[str] = []

    async def read(url: URL) -> bytes:
        asked.append(str(url))
        await asyncio.sleep(0)
        return b"User-agent: *\nDisallow: /" if url.host == "shut" else b"User-agent: *\nDisallow: /no"

    async def allow(cache: RobotsCache, *urls: str) -> list[bool]:
        return list(await asyncio.gather(*(cache.allow(URL(url)) for url in urls)))

    async def run() -> None:
        cache = RobotsCache(US, read)
        assert await allow(cache, "http://a/x", "http://a/no", "http://a/") == [True, False, True]
        assert asked == ["http://a/robots.txt"]
        assert await allow(cache, "https://a/x") == [True]
        assert await allow(cache, "http://shut/x") == [False]
        assert await allow(cache, "http://shut/y", "https://a/no?x") == [False, False]
        assert asked[1:] == ["https://a/robots.txt", "http://shut/robots.txt"]
        assert await allow(cache, "http://a/x") == [True]
        assert asked[3:] == ["http://a/robots.txt"]
        await cache.close()

    asyncio.run(run())


def test_a_failure_reaches_all_waiting_urls_and_is_not_cached() -> None:
    asked: list[str] = []

    async def read(url: URL) -> bytes:
        asked.append(str(url))
        await asyncio.sleep(0)
        if len(asked) == 1:
            raise OSError("down")
        return b"User-agent: *\nDisallow: /no"

    async def run() -> None:
        cache = RobotsCache(US, read)
        failures = await asyncio.gather(*(cache.allow(URL("http://a/x")) for _ in range(3)), return_exceptions=True)
        assert [str(failure) for failure in failures] == ["down"] * 3
        assert len(asked) == 1
        assert await cache.allow(URL("http://a/x"))
        assert not await cache.allow(URL("http://a/no"))
        assert len(asked) == 2
        await cache.close()

    asyncio.run(run())


def test_a_cancelled_caller_does_not_cancel_the_read_for_others() -> None:
    async def run() -> bool:
        answer = asyncio.Event()

        async def read(url: URL) -> bytes:
            await answer.wait()
            return b""

        cache = RobotsCache(US, read)
        impatient = asyncio.create_task(cache.allow(URL("http://a/x")))
        patient = asyncio.create_task(cache.allow(URL("http://a/y")))
        await asyncio.sleep(0)
        impatient.cancel()
        await asyncio.sleep(0)
        answer.set()
        return await patient

    assert asyncio.run(run())


def test_close_cancels_running_reads() -> None:
    async def run() -> None:
        async def read(url: URL) -> bytes:
            await asyncio.sleep(60)
            return b""

        cache = RobotsCache(US, read)
        waiting = asyncio.create_task(cache.allow(URL("http://a/x")))
        await asyncio.sleep(0.01)
        await cache.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(run())
