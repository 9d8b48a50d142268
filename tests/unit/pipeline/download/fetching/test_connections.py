"""Connection pools: direct and proxied requests to a real server, and the limit of open files."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
import pytest
from yarl import URL

from priorkit.pipeline.download.fetching import connections
from priorkit.pipeline.download.fetching.addresses import AddressGuard, BlockedAddress
from priorkit.pipeline.download.fetching.connections import Connections, ProxyFailure
from priorkit.pipeline.download.settings import DownloadSettings

NO_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NO_PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def with_server(answer: bytes, work: Callable[[int], Coroutine[Any, Any, None]]) -> list[bytes]:
    """Run a coroutine beside a server that gives every request the same answer; return the requests."""
    requests: list[bytes] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        async with server:
            await work(server.sockets[0].getsockname()[1])

    asyncio.run(run())
    return requests


def open_connections(proxy: str | None = None, *, allow_private: bool = True) -> Connections:
    guard = AddressGuard(allow_private=allow_private)
    return Connections(DownloadSettings(proxy=proxy), ssl.create_default_context(), guard)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody"


def test_a_direct_request_asks_for_the_path() -> None:
    async def work(port: int) -> None:
        async with open_connections() as pools, pools.request(URL(f"http://127.0.0.1:{port}/x?y")) as response:
            assert (response.status, await response.read()) == (200, b"body")

    (request,) = with_server(OK, work)
    assert request.startswith(b"GET /x?y HTTP/1.1\r\n")
    assert b"Accept-Encoding: identity\r\n" in request


def test_redirects_are_left_to_the_caller() -> None:
    async def work(port: int) -> None:
        async with open_connections() as pools, pools.request(URL(f"http://127.0.0.1:{port}/x")) as response:
            assert (response.status, response.headers["Location"]) == (302, "/y")

    assert len(with_server(b"HTTP/1.1 302 Found\r\nLocation: /y\r\nContent-Length: 0\r\n\r\n", work)) == 1


def test_the_guard_checks_names_of_direct_requests() -> None:
    async def work(port: int) -> None:
        async with open_connections(allow_private=False) as pools:
            with pytest.raises(BlockedAddress):
                async with pools.request(URL(f"http://localhost:{port}/x")):
                    pass

    assert with_server(OK, work) == []


def test_a_proxy_gets_the_whole_url_and_its_credentials() -> None:
    async def work(port: int) -> None:
        pools = open_connections(f"http://me:word@127.0.0.1:{port}", allow_private=False)
        async with pools, pools.request(URL("http://far.invalid/x")) as response:
            assert await response.read() == b"body"

    (request,) = with_server(OK, work)
    assert request.startswith(b"GET http://far.invalid/x HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic bWU6d29yZA==\r\n" in request


@pytest.mark.parametrize(
    ("scheme", "status", "transient"),
    [("http", 407, False), ("https", 407, False), ("https", 403, False), ("https", 429, True), ("https", 502, True)],
)
def test_a_refusal_of_the_proxy_is_named(scheme: str, status: int, transient: bool) -> None:
    async def work(port: int) -> None:
        async with open_connections(f"http://127.0.0.1:{port}") as pools:
            with pytest.raises(ProxyFailure, match=f"127.0.0.1:{port} answered {status}") as error:
                async with pools.request(URL(f"{scheme}://far.invalid/x")):
                    pass
            assert error.value.transient is transient
            assert ("a user and a password" in str(error.value)) == (status == 407)

    with_server(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status, work)


def test_a_status_of_the_target_is_no_refusal_of_the_proxy() -> None:
    async def work(port: int) -> None:
        pools = open_connections(f"http://127.0.0.1:{port}")
        async with pools, pools.request(URL("http://far.invalid/x")) as response:
            assert response.status == 503

    with_server(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", work)


def test_an_unreachable_proxy_is_named() -> None:
    async def run() -> None:
        async with open_connections("http://127.0.0.1:1") as pools:
            with pytest.raises(ProxyFailure, match=r"127\.0\.0\.1:1 is not reached") as error:
                async with pools.request(URL("http://far.invalid/x")):
                    pass
            assert error.value.transient

    asyncio.run(run())


def test_a_closed_port_of_a_server_is_no_failure_of_a_proxy() -> None:
    async def run() -> None:
        async with open_connections() as pools:
            with pytest.raises(aiohttp.ClientConnectorError):
                async with pools.request(URL("http://127.0.0.1:1/x")):
                    pass

    asyncio.run(run())


@pytest.mark.parametrize(("soft", "hard", "concurrency"), [(1024, 4096, 896), (64, 64, 1), (1024, 1 << 20, 2048)])
def test_concurrency_stays_within_the_limit_of_open_files(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, concurrency: int
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(connections.resource, "setrlimit", lambda _, limits: asked.append(limits[0]))
    assert connections.affordable(2048) == concurrency
    assert asked == [min(hard, 4 * 2048 + 512)]
