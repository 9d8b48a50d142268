"""The fetch through a real proxy: plain, by tunnel, with credentials, and what the guard can still refuse."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from priorkit.pipeline.download.fetching.fetch import Fetcher
from priorkit.pipeline.download.outcomes import FetchError
from priorkit.pipeline.download.settings import DownloadSettings

from .hostile_server import HostileServer, Places, response


class ProxyServer:
    """A proxy that answers plain requests itself, and tunnels all others to one port of this machine."""

    def __init__(self, refusal: str = "", password: str = "") -> None:
        self.asked: list[str] = []
        self.port = self.target = 0
        self.given: set[str] = set()
        """What was sent as Proxy-Authorization."""
        self._refusal, self._password = refusal, password

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{self.port}"
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            self.asked.append(" ".join(lines[0].split()[:2]))
            given = [line.split(" ", 2)[2] for line in lines if line.lower().startswith("proxy-authorization: ")]
            self.given.update(base64.b64decode(each).decode() for each in given)
            if self._password and self._password not in self.given:
                writer.write(response("407 Proxy Authentication Required"))
            elif self._refusal:
                writer.write(response(self._refusal))
            elif lines[0].startswith("CONNECT "):
                ours, theirs = await asyncio.open_connection("127.0.0.1", self.target)
                writer.write(b"HTTP/1.0 200 Connection established\r\n\r\n")
                await asyncio.gather(self._copy(reader, theirs), self._copy(ours, writer))
            else:
                writer.write(response(body=b"by proxy"))
            await writer.drain()
        writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.close()


def fetch(
    urls: list[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    server: ProxyServer | None = None,
    environment: dict[str, str] | None = None,
    **changes: Any,
) -> list[str]:
    """The outcome of each URL; `{proxy}` in a value, and ports of the hostile server in a URL, are filled in."""
    proxy = server or ProxyServer()

    async def run() -> list[str]:
        hostile = HostileServer(folder)
        async with hostile.running() as places, proxy.running() as address:
            proxy.target = places.trusted
            tls = ssl.create_default_context(cafile=str(hostile.authority))
            for name, value in (environment or {"all_proxy": "{proxy}"}).items():
                monkeypatch.setenv(name, value.replace("{proxy}", address))
            filled = {name: value.replace("{proxy}", address) for name, value in changes.items() if name == "proxy"}
            settings = DownloadSettings(**{"timeout_seconds": 600.0, "retries": 0, **changes, **filled})
            async with Fetcher(settings, tls) as fetcher:
                return [await one(fetcher, url, places) for url in urls]

    async def one(fetcher: Fetcher, url: str, places: Places) -> str:
        try:
            body = await fetcher.fetch(url.format(**vars(places)))
            return "by proxy" if body == b"by proxy" else "success"
        except FetchError as error:
            return str(error)

    return asyncio.run(run())


NAME = "http://images.example.test/a.jpg"


@pytest.mark.parametrize(
    ("environment", "changes"),
    [
        ({"http_proxy": "{proxy}"}, {}),
        ({"HTTP_PROXY": "{proxy}"}, {}),
        ({"all_proxy": "{proxy}"}, {}),
        ({"http_proxy": "http://127.0.0.1:1"}, {"proxy": "{proxy}"}),
    ],
)
def test_a_name_is_resolved_by_the_proxy_that_may_be_at_a_private_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], changes: dict[str, Any]
) -> None:
    proxy = ProxyServer()
    assert fetch([NAME], tmp_path, monkeypatch, proxy, environment, **changes) == ["by proxy"]
    assert proxy.asked == [f"GET {NAME}"]


def test_a_secure_url_goes_through_a_tunnel(tmp_path: Path) -> None:
    proxy = ProxyServer(password="user:word")
    outcomes = fetch_with_password(tmp_path, proxy)
    assert outcomes == ["success", "http_4xx: 404", "by proxy"]
    assert [line.split(":")[0] for line in proxy.asked] == ["CONNECT 127.0.0.1", "GET http"]


def fetch_with_password(folder: Path, proxy: ProxyServer) -> list[str]:
    async def run() -> list[str]:
        server = HostileServer(folder)
        async with server.running() as places, proxy.running():
            proxy.target = places.trusted
            tls = ssl.create_default_context(cafile=str(server.authority))
            settings = DownloadSettings(
                proxy=f"http://user:word@127.0.0.1:{proxy.port}", allow_addresses=("127.0.0.1",), retries=0
            )
            outcomes = []
            async with Fetcher(settings, tls) as fetcher:
                for url in (
                    f"https://127.0.0.1:{places.trusted}/image",
                    f"https://127.0.0.1:{places.trusted}/404",
                    NAME,
                ):
                    try:
                        body = await fetcher.fetch(url)
                        outcomes.append("by proxy" if body == b"by proxy" else "success")
                    except FetchError as error:
                        outcomes.append(str(error))
            return outcomes

    return asyncio.run(run())


def test_no_proxy_and_none_go_directly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, allowed = "http://127.0.0.1:{plain}/image", ("127.0.0.0/8",)
    proxy = ProxyServer()
    both = {"http_proxy": "{proxy}", "no_proxy": "127.0.0.1"}
    assert fetch([url], tmp_path, monkeypatch, proxy, both, allow_addresses=allowed) == ["success"]
    only = {"http_proxy": "{proxy}", "no_proxy": ""}
    assert fetch([url], tmp_path, monkeypatch, proxy, only, allow_addresses=allowed, proxy="none") == ["success"]
    assert proxy.asked == []
    assert fetch([url], tmp_path, monkeypatch, proxy, only, allow_addresses=allowed) == ["by proxy"]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "10.0.0.1", "[::1]", "0x7f.1", "localhost", "a.localhost.", "169.254.169.254"]
)
def test_what_is_spelled_out_is_refused_behind_a_proxy_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    proxy = ProxyServer()
    (outcome,) = fetch([f"http://{host}/x"], tmp_path, monkeypatch, proxy)
    assert outcome.startswith("blocked_address: ")
    assert proxy.asked == []


@pytest.mark.parametrize(
    ("url", "answer", "expected"),
    [
        (
            NAME,
            "407 Authentication Required",
            "proxy: {proxy} answered 407: it wants a user and a password",
        ),
        ("https://x.test/", "407 Authentication Required", "proxy: {proxy} answered 407: it wants a user"),
        ("https://x.test/", "403 Forbidden", "proxy: {proxy} answered 403"),
        ("https://x.test/", "502 Bad Gateway", "proxy: {proxy} answered 502"),
        (NAME, "403 Forbidden", "http_4xx: 403"),
        (NAME, "503 Service Unavailable", "http_5xx: 503"),
    ],
)
def test_a_proxy_that_refuses_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, answer: str, expected: str
) -> None:
    proxy = ProxyServer(refusal=answer)
    (outcome,) = fetch([url], tmp_path, monkeypatch, proxy)
    assert outcome.startswith(expected.replace("{proxy}", f"http://127.0.0.1:{proxy.port}"))


@pytest.mark.parametrize("place", ["http://127.0.0.1:1", "http://no-such-proxy.invalid:1"])
def test_a_proxy_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    (outcome,) = fetch([NAME], tmp_path, monkeypatch, environment={"http_proxy": place})
    assert outcome.startswith(f"proxy: {place} is not reached: ")


def test_robots_txt_is_asked_for_through_the_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = ProxyServer()
    assert fetch([NAME], tmp_path, monkeypatch, proxy, robots_txt=True) == ["by proxy"]
    assert proxy.asked[0] == "GET http://images.example.test/robots.txt"
