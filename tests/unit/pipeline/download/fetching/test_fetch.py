"""Fetch of URLs from a real server, which gives the good and bad answers of the web."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gzip
import logging
import random
import socket
import ssl
import threading
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from priorkit.pipeline.download.fetching import fetch as fetch_module
from priorkit.pipeline.download.fetching import retry
from priorkit.pipeline.download.fetching.fetch import Fetcher
from priorkit.pipeline.download.outcomes import FetchError
from priorkit.pipeline.download.settings import DownloadSettings

Answer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


def response(status: str = "200 OK", body: bytes = b"body", **headers: str) -> bytes:
    """Return the bytes of an HTTP response."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *lines])
    return head.encode() + b"\r\n\r\n" + body


class Server:
    """HTTP server on this machine, with fixed bytes or a coroutine as the answer for each path."""

    def __init__(self, answers: dict[str, Answer]) -> None:
        self.answers = answers
        self.requests: list[bytes] = []
        self.port = 0
        self._handlers: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            for handler in self._handlers:
                handler.cancel()
            await asyncio.gather(*self._handlers, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(request)
            answer = self.answers[request.split()[1].decode()]
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await answer(writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


@functools.cache
def tls_context() -> ssl.SSLContext:
    """The system's certificates, which take longer to read than a test takes."""
    return ssl.create_default_context()


def settings(**changes: Any) -> DownloadSettings:
    return DownloadSettings(**{"allow_private_addresses": True, "timeout_seconds": 600.0, "retries": 0, **changes})


def fetch(urls: list[str | None], server: Server, **changes: Any) -> list[bytes | str]:
    """Fetch all URLs at once, and return each body or error text. `{server}` in a URL is the server's address."""

    async def run() -> list[bytes | str]:
        async with server.running(), Fetcher(settings(**changes), tls_context()) as fetcher:

            async def one(url: str | None) -> bytes | str:
                try:
                    return await fetcher.fetch(url and url.replace("{server}", server.url))
                except FetchError as error:
                    return str(error)

            return list(await asyncio.gather(*(one(url) for url in urls)))

    return asyncio.run(run())


def fetch_one(answer: Answer, **changes: Any) -> bytes | str:
    return fetch(["{server}/x.jpg"], Server({"/x.jpg": answer}), **changes)[0]


def test_a_good_answer_is_its_body() -> None:
    server = Server({"/x.jpg": response(body=bytes(range(256)) * 1000)})
    assert fetch(["{server}/x.jpg"], server) == [bytes(range(256)) * 1000]
    assert b"user-agent: priorkit/" in server.requests[0].lower()
    assert b"cookie" not in server.requests[0].lower()


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ("404 Not Found", "http_4xx: 404"),
        ("410 Gone", "http_4xx: 410"),
        ("403 Forbidden", "http_4xx: 403"),
        ("429 Too Many Requests", "http_429: 429"),
        ("500 Internal Server Error", "http_5xx: 500"),
        ("503 Service Unavailable", "http_5xx: 503"),
        ("204 No Content", "http_other: 204"),
        ("206 Partial Content", "http_other: 206, a part of the body"),
        ("304 Not Modified", "http_other: 304"),
        ("302 Found", "http_other: 302"),
    ],
)
def test_a_status_other_than_200_is_named(status: str, outcome: str) -> None:
    assert fetch_one(response(status, b"")) == outcome


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
def test_redirects_are_followed_relative_and_absolute(status: str) -> None:
    server = Server({"/a/x": response(status, Location="../b?c=%2F"), "/b?c=%2F": b"", "/d": response(body=b"end")})
    server.answers["/b?c=%2F"] = _redirect_to(lambda: f"{server.url}/d")
    assert fetch(["{server}/a/x"], server) == [b"end"]


def _redirect_to(url: Callable[[], str]) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(response("302 Found", b"", Location=url()))
        await writer.drain()

    return answer


def test_a_redirect_loop_ends() -> None:
    server = Server({"/a": response("302 Found", b"", Location="/b"), "/b": response("302 Found", b"", Location="/a")})
    assert fetch(["{server}/a"], server) == ["redirect_loop: more than 10 redirects"]
    assert len(server.requests) == 11


def test_ten_redirects_are_followed() -> None:
    answers: dict[str, Answer] = {f"/{n}": response("302 Found", b"", Location=f"/{n - 1}") for n in range(1, 12)}
    server = Server({**answers, "/0": response()})
    assert fetch(["{server}/10", "{server}/11"], server) == [b"body", "redirect_loop: more than 10 redirects"]


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://h/x", "data:image/png;base64,AAAA", "javascript:1"])
def test_a_redirect_to_another_scheme_is_refused(target: str) -> None:
    outcome = fetch_one(response("302 Found", b"", Location=target))
    assert isinstance(outcome, str)
    assert outcome.startswith("bad_scheme: ")


@pytest.mark.parametrize(
    ("target", "outcome"),
    [
        ("file:///etc/hostname", "bad_scheme: file is not http or https"),
        ("s3://bucket/a.jpg", "bad_scheme: s3 is not http or https"),
        ("{folder}/a.jpg", "http_4xx: 404"),
        ("a.jpg", "http_4xx: 404"),
    ],
)
def test_a_redirect_is_never_read_as_a_path(target: str, outcome: str, tmp_path: Path) -> None:
    """The server that chose it must not choose what is read on this machine."""
    (tmp_path / "a.jpg").write_bytes(b"secret")
    redirect = response("302 Found", b"", Location=target.replace("{folder}", str(tmp_path)))
    gone = response("404 Not Found")
    server = Server({"/x.jpg": redirect, "/a.jpg": gone, f"{tmp_path}/a.jpg": gone})
    urls: list[str | None] = ["{server}/x.jpg", f"{tmp_path}/a.jpg"]
    assert fetch(urls, server, allow_paths=True) == [outcome, b"secret"]


def test_paths_are_refused_by_default_and_the_setting_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"content")
    urls: list[str | None] = [str(tmp_path / "a.jpg"), f"file://{tmp_path}/a.jpg", "s3://bucket/a.jpg", "ftp://h/x"]
    hint = "is not http or https; download.allow_paths=true reads paths"
    assert fetch(urls, Server({})) == [
        f"bad_scheme: none {hint}",
        f"bad_scheme: file {hint}",
        f"bad_scheme: s3 {hint}",
        "bad_scheme: ftp is not http or https",
    ]
    assert fetch(urls[:2], Server({}), allow_paths=True) == [b"content"] * 2


def test_a_relative_path_in_a_list_on_the_web_is_fetched_from_there() -> None:
    server = Server({"/lists/a.jpg": response(), "/b.jpg": response(body=b"other")})

    async def run() -> list[bytes]:
        async with server.running():
            base = f"{server.url}/lists/urls.csv"
            async with Fetcher(settings(allow_paths=True), tls_context(), base) as fetcher:
                return [await fetcher.fetch("a.jpg"), await fetcher.fetch("../b.jpg")]

    assert asyncio.run(run()) == [b"body", b"other"]


def test_a_slow_body_without_pauses_meets_the_deadline() -> None:
    async def trickle(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        for _ in range(1000):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    assert fetch_one(trickle, timeout_seconds=0.4) == "timeout: no whole body within 0.4 s"


def test_a_silent_server_meets_the_deadline() -> None:
    async def silent(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    assert fetch_one(silent, timeout_seconds=0.3) == "timeout: no whole body within 0.3 s"


def test_redirects_share_one_deadline() -> None:
    answers: dict[str, Answer] = {}

    def slow_redirect(target: str) -> Answer:
        async def answer(writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(0.2)
            writer.write(response("302 Found", b"", Location=target))
            await writer.drain()

        return answer

    for step in range(9):
        answers[f"/{step}"] = slow_redirect(f"/{step + 1}")
    answers["/9"] = response()
    assert fetch(["{server}/0"], Server(answers), timeout_seconds=0.7) == ["timeout: no whole body within 0.7 s"]


def test_the_wait_for_a_slot_does_not_count_against_the_deadline() -> None:
    async def slow(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)
        writer.write(response())
        await writer.drain()

    urls: list[str | None] = ["{server}/x"] * 8
    assert fetch(urls, Server({"/x": slow}), concurrency=1, timeout_seconds=2.0) == [b"body"] * 8


def test_an_endless_body_meets_the_size_limit() -> None:
    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    assert fetch_one(endless, max_bytes=300_000) == "too_large: more than 300000 bytes"


@pytest.mark.parametrize(("size", "kept"), [(1000, True), (1001, False)])
def test_the_size_limit_is_exact(size: int, kept: bool) -> None:
    outcome = fetch_one(response(body=b"x" * size), max_bytes=1000)
    assert outcome == (b"x" * size if kept else "too_large: Content-Length of 1001 is more than 1000 bytes")


def test_a_gzip_bomb_meets_the_size_limit_and_takes_little_memory() -> None:
    bomb = gzip.compress(bytes(64_000_000))
    assert len(bomb) < 100_000
    tracemalloc.start()
    try:
        outcome = fetch_one(response(body=bomb, Content_Encoding="gzip"), max_bytes=1_000_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert outcome == "too_large: more than 1000000 bytes"
    assert peak < 16_000_000


def test_a_compressed_body_is_decompressed() -> None:
    assert fetch_one(response(body=gzip.compress(b"image"), Content_Encoding="gzip")) == b"image"


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Le",
    ],
)
def test_a_connection_that_breaks_is_a_counted_failure(sent: bytes) -> None:
    async def breaks(writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.transport.abort()

    outcome = fetch_one(breaks)
    assert isinstance(outcome, str)
    assert outcome.startswith("connection: ")


def test_a_closed_port_a_dead_name_and_a_port_without_tls_have_different_outcomes() -> None:
    with contextlib.closing(socket.socket()) as closed, contextlib.closing(socket.socket()) as plain:
        closed.bind(("127.0.0.1", 0))  # bound, but not listening
        plain.bind(("127.0.0.1", 0))
        plain.listen()

        def answer_in_clear() -> None:
            connection, _ = plain.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.recv(1 << 16)

        thread = threading.Thread(target=answer_in_clear)
        thread.start()
        refused, dns, tls = fetch(
            [
                f"http://127.0.0.1:{closed.getsockname()[1]}/x",
                "http://nosuch.invalid/x",
                f"https://127.0.0.1:{plain.getsockname()[1]}/x",
            ],
            Server({}),
        )
        thread.join()
    assert str(refused).startswith("refused: ")
    assert str(dns).startswith("dns: nosuch.invalid")
    assert str(tls).startswith("tls: ")


@pytest.mark.parametrize(
    "url", ["ftp://h/x", "file:///etc/passwd", "data:,x", "//h/x", "h/x.jpg", "gopher://h", "C:\\x"]
)
def test_other_schemes_are_refused(url: str) -> None:
    (outcome,) = fetch([url], Server({}))
    assert str(outcome).startswith("bad_scheme: ")


@pytest.mark.parametrize("url", [None, "", "  ", "\n"])
def test_an_empty_url_is_named(url: str | None) -> None:
    assert fetch([url], Server({})) == ["empty_url"]


@pytest.mark.parametrize(
    "url",
    [
        "http://", "http:///x", "http://[::1", "http://h:99999/", "http://h:x/", "http://a..b/", "http://" + "a" * 80,
        "http://\x00/", "http://exa mple/", "http://\udcff/", "http://?", "http://[zz]/", "https:x",
    ],
)  # fmt: skip
def test_a_malformed_url_is_a_counted_failure(url: str) -> None:
    (outcome,) = fetch([url], Server({}))
    assert isinstance(outcome, str)
    assert outcome.partition(":")[0] in ("bad_url", "dns", "connection")


def test_a_legal_url_is_sent_unchanged() -> None:
    """A signature covers the exact characters, and img2dataset sends them unchanged."""
    path = "/a%2Fb%7Ec%3D/x.jpg?sig=x%2By%3D%3D%26z&k=%7E+1;2"
    server = Server({path: response()})
    assert fetch([f" {{server}}{path}#part\n"], server) == [b"body"]
    assert server.requests[0].split()[1].decode() == path


def test_spaces_and_non_ascii_letters_are_quoted() -> None:
    server = Server({"/a%20b/%E7%8C%AB.jpg": response()})
    assert fetch(["{server}/a b/猫.jpg"], server) == [b"body"]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "localhost.",
        "LOCALHOST",
        "2130706433",
        "0x7f.1",
        "127.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
    ],
)
def test_loopback_is_refused_without_a_request(host: str) -> None:
    async def run() -> tuple[str, int]:
        server = Server({"/x": response()})
        closed = settings(allow_private_addresses=False)
        async with server.running(), Fetcher(closed, tls_context()) as fetcher:
            with pytest.raises(FetchError) as error:
                await fetcher.fetch(f"http://{host}:{server.port}/x")
            return str(error.value), len(server.requests)

    outcome, asked = asyncio.run(run())
    odd = host in ("2130706433", "127.1", "0x7f.1", "localhost.")  # some resolvers do not know these
    assert outcome.partition(":")[0] in (("blocked_address", "bad_url", "dns") if odd else ("blocked_address",))
    assert asked == 0


@pytest.mark.parametrize("url", ["http://10.0.0.1/", "http://192.168.1.1/", "http://169.254.169.254/latest/meta-data"])
def test_private_networks_are_refused(url: str) -> None:
    (outcome,) = fetch([url], Server({}), allow_private_addresses=False)
    assert str(outcome).startswith("blocked_address: ")


@pytest.mark.parametrize("target", ["127.0.0.2", "[::1]", "169.254.169.254", "10.0.0.1"])
def test_a_redirect_to_a_private_address_is_refused(target: str) -> None:
    server = Server({"/secret": response(body=b"secret")})
    server.answers["/x"] = _redirect_to(lambda: f"http://{target}:{server.port}/secret")
    (outcome,) = fetch(["{server}/x"], server, allow_private_addresses=False, allow_addresses=["127.0.0.1"])
    assert str(outcome).startswith("blocked_address: ")
    assert [request.split()[1] for request in server.requests] == [b"/x"]


def test_each_url_of_a_blocked_name_fails_separately(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        outcomes = fetch(["http://localhost:1/x"] * 20, Server({}), allow_private_addresses=False)
    assert {str(outcome).partition(":")[0] for outcome in outcomes} == {"blocked_address"}
    assert not caplog.records


def test_one_failure_does_not_affect_other_urls() -> None:
    server = Server({"/good": response(), "/gone": response("404 Not Found", b"")})
    urls: list[str | None] = ["{server}/good", "{server}/gone", None, "{server}/good"] * 5
    assert fetch(urls, server) == [b"body", "http_4xx: 404", "empty_url", b"body"] * 5


def test_an_opted_out_image_is_not_used() -> None:
    answer = b"HTTP/1.1 200 OK\r\nX-Robots-Tag: all\r\nX-Robots-Tag: priorkit: noai\r\nContent-Length: 4\r\n\r\nbody"
    assert fetch_one(answer) == "opted_out: X-Robots-Tag"
    assert fetch_one(answer, user_agent="someone") == b"body"


def recovering(*failures: bytes) -> Answer:
    """Answer with each failure once, and with success after that."""
    left = list(failures)

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(left.pop(0) if left else response())
        await writer.drain()

    return answer


BUSY, DOWN = response("429 Too Many Requests", b""), response("503 Service Unavailable", b"")


def test_attempts_end_at_the_first_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST_BACKOFF_SECONDS", 0.001)
    broken = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nbody"
    server = Server({"/x": recovering(DOWN, BUSY, broken)})
    assert fetch(["{server}/x"], server, retries=5) == [b"body"]
    assert len(server.requests) == 4


def test_attempts_exceed_retries_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST_BACKOFF_SECONDS", 0.001)
    server = Server({"/x": DOWN})
    assert fetch(["{server}/x"], server, retries=3) == ["http_5xx: 503"]
    assert len(server.requests) == 4


def test_no_attempt_starts_that_the_deadline_would_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outcome is then the failure, not `timeout`, and no time is spent on the wait that is too long."""
    monkeypatch.setattr(retry, "backoff", lambda url, attempt: [0.001, 0.001, 1000.0][attempt])
    server = Server({"/x": DOWN})
    assert fetch(["{server}/x"], server, retries=100, timeout_seconds=30.0) == ["http_5xx: 503"]
    assert len(server.requests) == 3


def test_the_deadline_covers_slow_attempts() -> None:
    async def slow_failure(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.4)
        writer.write(DOWN)
        await writer.drain()

    outcome = fetch(["{server}/x"], Server({"/x": slow_failure}), retries=100, timeout_seconds=1.0)
    assert outcome in (["timeout: no whole body within 1 s"], ["http_5xx: 503"])


@pytest.mark.parametrize(("wait", "expected"), [("1", b"body"), ("30", "http_429: 429, to be tried again after 30 s")])
def test_retry_after_is_obeyed_within_the_deadline(wait: str, expected: bytes | str) -> None:
    server = Server({"/x": recovering(response("429 Too Many Requests", b"", Retry_After=wait))})
    start = time.monotonic()
    assert fetch(["{server}/x"], server, retries=1, timeout_seconds=20.0) == [expected]
    if expected == b"body":
        assert time.monotonic() - start >= 1
    assert len(server.requests) == (2 if expected == b"body" else 1)


def test_urls_have_the_outcome_of_their_robots_txt_and_are_retried_like_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST_BACKOFF_SECONDS", 0.001)
    for retries, expected in ((0, "http_5xx: 503, of robots.txt"), (1, b"body")):
        server = Server({"/robots.txt": recovering(DOWN), "/x": response()})
        assert fetch(["{server}/x"], server, robots_txt=True, retries=retries) == [expected]
        paths = [request.split()[1] for request in server.requests]
        assert paths == [b"/robots.txt", b"/robots.txt", b"/x"][: 1 + 2 * retries]
    (blocked,) = fetch(["http://localhost:1/x"], Server({}), robots_txt=True, allow_private_addresses=False)
    assert str(blocked).startswith("blocked_address: ")


class Busyness:
    """Answer that waits until an expected number of requests is there, with the largest number of them at once."""

    def __init__(self, expected: int) -> None:
        self.now = self.most = 0
        self._expected = expected
        self._reached = asyncio.Event()

    async def __call__(self, writer: asyncio.StreamWriter) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        if self.now == self._expected:
            self._reached.set()
        await self._reached.wait()
        await asyncio.sleep(0.05)  # in which one too many would arrive
        self.now -= 1
        writer.write(response())
        await writer.drain()


@pytest.mark.parametrize(
    ("changes", "most"),
    [({"connections_per_host": 3}, 3), ({"concurrency": 5}, 5), ({"connections_per_host": 100}, 12)],
)
def test_concurrency_limits_are_exact(changes: dict[str, int], most: int) -> None:
    busy = Busyness(most)
    assert fetch(["{server}/x"] * 12, Server({"/x": busy}), **changes) == [b"body"] * 12
    assert busy.most == most


def test_a_slow_host_does_not_delay_other_hosts() -> None:
    """URLs that wait for a host take no slot of `concurrency`."""

    async def run() -> list[str]:
        ended: list[str] = []
        quick_ended = asyncio.Event()

        async def slow(writer: asyncio.StreamWriter) -> None:
            await quick_ended.wait()
            writer.write(response())
            await writer.drain()

        server = Server({"/slow": slow, "/quick": response()})
        chosen = settings(concurrency=2, connections_per_host=1)
        async with server.running(), Fetcher(chosen, tls_context()) as fetcher:

            async def one(host: str, path: str) -> None:
                await fetcher.fetch(f"http://{host}:{server.port}{path}")
                ended.append(path)
                if path == "/quick":
                    quick_ended.set()

            await asyncio.gather(*(one("127.0.0.1", "/slow") for _ in range(3)), one("localhost", "/quick"))
            assert not fetcher._host_slots  # a host is forgotten with its last URL
        return ended

    assert asyncio.run(run())[0] == "/quick"


def test_connections_are_reused() -> None:
    connections = 0

    async def run() -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            with contextlib.suppress(asyncio.IncompleteReadError):
                while await reader.readuntil(b"\r\n\r\n"):
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody")
            writer.close()

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, Fetcher(settings(), tls_context()) as fetcher:
            for _ in range(5):
                assert await fetcher.fetch(f"http://127.0.0.1:{port}/x") == b"body"

    asyncio.run(run())
    assert connections == 1


def test_a_stalled_compressed_body_does_not_delay_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body takes a decoding slot only once it is whole."""
    monkeypatch.setattr(fetch_module, "_DECODED_AT_ONCE", 1)
    packer = zlib.compressobj()
    begun = packer.compress(bytes(2_000_000)) + packer.flush(zlib.Z_SYNC_FLUSH)

    async def run() -> list[bytes]:
        has_begun = asyncio.Event()

        async def stalls(writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\n\r\n" + begun)
            await writer.drain()
            await asyncio.sleep(0.1)  # in which the client reads what is sent
            has_begun.set()
            await asyncio.sleep(60)

        large = response(body=gzip.compress(bytes(2_000_000)), Content_Encoding="gzip")
        server = Server({"/stalls": stalls, "/large": large})
        chosen = settings()
        async with server.running(), Fetcher(chosen, tls_context()) as fetcher:
            stalled = asyncio.create_task(fetcher.fetch(f"{server.url}/stalls"))
            await has_begun.wait()
            others = await asyncio.gather(*(fetcher.fetch(f"{server.url}/large") for _ in range(5)))
            assert not stalled.done()
            stalled.cancel()
            await asyncio.gather(stalled, return_exceptions=True)
        return others

    assert asyncio.run(run()) == [bytes(2_000_000)] * 5


def test_a_failure_releases_its_body() -> None:
    """The traceback would keep it alive until the next garbage collection."""

    async def run() -> int:
        server = Server({"/x": response(body=gzip.compress(bytes(3_000_000)), Content_Encoding="gzip")})
        chosen = settings(max_bytes=2_900_000)
        async with server.running(), Fetcher(chosen, tls_context()) as fetcher:
            tracemalloc.start()
            failures = await asyncio.gather(
                *(fetcher.fetch(f"{server.url}/x") for _ in range(8)), return_exceptions=True
            )
            held, _ = tracemalloc.get_traced_memory()
        assert [str(failure) for failure in failures] == ["too_large: more than 2900000 bytes"] * 8
        return held

    try:
        assert asyncio.run(run()) < 8_000_000
    finally:
        tracemalloc.stop()


GOOD = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n"
    b"4\r\nbody\r\n0\r\n\r\n"
)


def test_garbage_gives_a_body_or_a_named_failure(caplog: pytest.LogCaptureFixture) -> None:
    """Answers with pieces removed, repeated and overwritten; another exception would end the shard."""
    chance = random.Random(0)
    answers: dict[str, Answer] = {}
    for number in range(300):
        answer = bytearray(GOOD)
        for _ in range(chance.randint(1, 8)):
            start = chance.randrange(len(answer) or 1)
            end = start + chance.randint(0, 12)
            answer[start:end] = chance.choice(
                [b"", answer[start:end] * 2, chance.randbytes(end - start), b"\r\n", b"0"]
            )
        answers[f"/{number}"] = bytes(answer)
    outcomes = fetch([f"{{server}}{path}" for path in answers], Server(answers), timeout_seconds=5.0)
    assert {outcome.partition(":")[0] for outcome in outcomes if isinstance(outcome, str)} <= {
        "bad_response", "connection", "http_other", "http_4xx", "http_5xx", "http_429", "timeout", "too_large",
    }  # fmt: skip
    assert not caplog.records
