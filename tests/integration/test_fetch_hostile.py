"""Every hostile behaviour has its named outcome, within the deadline, while all the others go on beside it."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from priorkit.pipeline.download.fetching import addresses, connections
from priorkit.pipeline.download.fetching.fetch import Fetcher
from priorkit.pipeline.download.outcomes import FetchError
from priorkit.pipeline.download.settings import DownloadSettings

from .hostile_server import BEHAVIOURS, MAX_BYTES, ROBOTS, Behaviour, HostileServer, response

DEADLINE, PATIENCE = 1.5, 30.0
"""Seconds for what never ends, and for all else, which a busy machine may make slow."""
SERVER = "127.0.9.9"
"""The one address that counts as public, for want of a public server."""

OPEN: dict[str, tuple[str, str]] = {
    "TLS": ("success", "https://127.0.0.1:{trusted}/image"),
    "TLS, expired": ("tls", "https://127.0.0.1:{expired}/image"),
    "TLS, by nobody": ("tls", "https://127.0.0.1:{unknown}/image"),
    "TLS, of another host": ("tls", "https://127.0.0.1:{other}/image"),
    "TLS, asked of a plain port": ("tls", "https://127.0.0.1:{plain}/image"),
    "TLS, no answer": ("timeout", "https://127.0.0.1:{mute}/image"),
    "TLS, hung up": ("connection", "https://127.0.0.1:{rude}/image"),
    "plain, asked of a TLS port": ("connection", "http://127.0.0.1:{trusted}/image"),
    "TLS to plain": ("success", "https://127.0.0.1:{trusted}/redirect"),
    "closed port": ("refused", "http://127.0.0.1:{closed}/image"),
    "port 0": ("bad_url", "http://127.0.0.1:0/image"),
    "nothing": ("empty_url", " "),
    "file": ("bad_scheme", "file:///etc/passwd"),
    "data": ("bad_scheme", "data:image/png;base64,AAAA"),
    "ftp": ("bad_scheme", "ftp://127.0.0.1/image"),
    "user": ("bad_url", "http://user@127.0.0.1:{plain}/image"),
    "user and word": ("bad_url", "http://user:word@127.0.0.1:{plain}/image"),
    "disguise": ("bad_url", "http://example.org%2F@127.0.0.1:{plain}/image"),
    "decimal address": ("success", "http://2130706433:{plain}/image"),
    "unknown name": ("dns", "http://dead.test:{plain}/image"),
    "name servers that are busy once": ("success", "http://busy.test:{plain}/image"),
    "name servers that are busy": ("dns", "http://busier.test:{plain}/image"),
    "name servers that hang": ("timeout", "http://hanging.test:{plain}/image"),
    "name beyond ASCII": ("success", "http://bücher.test:{plain}/image"),
    "name that no look-up takes": ("bad_url", "http://a..test/image"),
    "label too long": ("bad_url", f"http://{'a' * 80}.test/image"),
}
GUARDED: dict[str, tuple[str, str]] = {
    "public name": ("success", "http://public.test:{plain}/image"),
    "public address": ("success", f"http://{SERVER}:{{plain}}/image"),
    **{
        f"address {host}": ("blocked_address", f"http://{host}:{{plain}}/image")
        for host in (
            "127.0.0.1", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "0x7f000001", "0.0.0.0", "10.0.0.1",
            "169.254.169.254", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]",
            "[fe80::1%25eth0]", "[2606:4700::1%25lo]", "127.0.0.1:{plain}/../image?x=",
        )
    },
    "name of a private address": ("blocked_address", "http://private.test:{plain}/image"),
    "name of two addresses": ("blocked_address", "http://mixed.test:{plain}/image"),
    "name of a mapped address": ("blocked_address", "http://mapped.test:{plain}/image"),
    "name of a scoped address": ("blocked_address", "http://scoped.test:{plain}/image"),
}  # fmt: skip
REDIRECTS = ("127.0.0.1", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "0x7f.1", "private.test", "mixed.test")
"""Where a public server sends us, in vain."""

Address = str | int
NAMES: dict[str, list[list[Address]]] = {
    "public.test": [[SERVER]],
    "xn--bcher-kva.test": [["127.0.0.1"]],
    "private.test": [["10.0.0.1"]],
    "mixed.test": [[SERVER, "127.0.0.1"]],
    "mapped.test": [["::ffff:127.0.0.1"]],
    "scoped.test": [["fe80::1%2"]],
    "dead.test": [[socket.EAI_NONAME]],
    "busy.test": [[socket.EAI_AGAIN], ["127.0.0.1"]],
    "busier.test": [[socket.EAI_AGAIN]],
    "rebinding.test": [[SERVER], ["127.0.0.1"]],
}
"""What each look-up of a name gives, or the error that it raises; the last one for ever."""


class NameServers:
    """Stands in for `socket.getaddrinfo`, the lowest layer of a look-up; all other names are looked up by it."""

    def __init__(self) -> None:
        self.asked: collections.Counter[str] = collections.Counter()
        self.released = threading.Event()
        self._real = socket.getaddrinfo

    def __call__(self, host: Any, port: Any, *rest: Any, **options: Any) -> Any:
        if host == "hanging.test":
            self.released.wait(600)
            raise socket.gaierror(socket.EAI_AGAIN, "released")
        if host not in NAMES:
            return self._real(host, port, *rest, **options)
        found = NAMES[host][min(self.asked[host], len(NAMES[host]) - 1)]
        self.asked[host] += 1
        results = []
        for address in found:
            if isinstance(address, int):
                raise socket.gaierror(address, "an error")
            v6 = ":" in address
            family, place = (socket.AF_INET6, (address, port, 0, 0)) if v6 else (socket.AF_INET, (address, port))
            results.append((family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", place))
        return results


@contextlib.contextmanager
def _public_server() -> Iterator[NameServers]:
    """The two stand-ins of this module: names, and one address that counts as public."""
    names = NameServers()
    real = addresses.is_public
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(addresses, "is_public", lambda address: address == SERVER or real(address))
        patch.setattr(socket, "getaddrinfo", names)
        try:
            yield names
        finally:
            names.released.set()


@dataclass
class Result:
    """What came of one URL."""

    outcome: str
    detail: str
    seconds: float


def settings(**changes: Any) -> DownloadSettings:
    values = {"allow_private_addresses": True, "timeout_seconds": PATIENCE, "max_bytes": MAX_BYTES}
    return DownloadSettings(**{**values, "connections_per_host": 1000, **changes})


async def _fetch(fetcher: Fetcher, url: str) -> Result:
    start = time.monotonic()
    try:
        await fetcher.fetch(url)
    except FetchError as error:
        return Result(error.outcome, error.detail, time.monotonic() - start)
    return Result("success", "", time.monotonic() - start)


CASES = {
    **{f"/{name}": behaviour.outcome for name, behaviour in BEHAVIOURS.items()},
    **{name: outcome for name, (outcome, _) in (OPEN | GUARDED).items()},
    **{f"robots.txt of {host}": outcome for host, (outcome, _) in ROBOTS.items()},
}
ENDLESS = {name for name, outcome in CASES.items() if outcome == "timeout"}


class Run:
    """All cases that end fetched at once, and then all those that do not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results: dict[str, Result] = {}
        self.requests: collections.Counter[str] = collections.Counter()
        self.look_ups: collections.Counter[str] = collections.Counter()

    async def __call__(self) -> None:
        server = HostileServer(self.folder)
        with _public_server() as names, contextlib.closing(socket.socket()) as closed:
            closed.bind(("127.0.0.1", 0))  # taken, but nobody listens
            async with server.running() as places:
                self._places = {**vars(places), "closed": closed.getsockname()[1]}
                self._tls = ssl.create_default_context(cafile=str(server.authority))
                for changes in ({}, {"timeout_seconds": DEADLINE}):
                    await asyncio.gather(
                        self._fetch({f"/{name}": f"http://127.0.0.1:{{plain}}/{name}" for name in BEHAVIOURS}, changes),
                        self._fetch({name: url for name, (_, url) in OPEN.items()}, changes),
                        self._fetch(
                            {name: url for name, (_, url) in GUARDED.items()},
                            {**changes, "allow_private_addresses": False},
                        ),
                        self._fetch(
                            {f"robots.txt of {host}": f"http://{host}:{{plain}}/image" for host in ROBOTS},
                            {**changes, "robots_txt": True, "retries": 0},
                        ),
                    )
        self.requests = collections.Counter(server.requests)
        self.look_ups = names.asked

    async def _fetch(self, urls: dict[str, str], changes: dict[str, Any]) -> None:
        chosen = {name: url for name, url in urls.items() if (name in ENDLESS) == ("timeout_seconds" in changes)}
        async with Fetcher(settings(**changes), self._tls) as fetcher:
            tried = (_fetch(fetcher, url.format(**self._places)) for url in chosen.values())
            self.results.update(zip(chosen, await asyncio.gather(*tried), strict=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("hostile"))
    asyncio.run(run())
    return run


@pytest.mark.parametrize("case", CASES)
def test_every_behaviour_has_its_outcome_within_the_deadline(run: Run, case: str) -> None:
    result = run.results[case]
    assert result.outcome == CASES[case], result
    assert result.seconds < (DEADLINE if case in ENDLESS else PATIENCE) + 1


@pytest.mark.parametrize("name", [name for name, behaviour in BEHAVIOURS.items() if behaviour.requests])
def test_only_what_may_pass_is_asked_for_again(run: Run, name: str) -> None:
    assert run.requests[f"127.0.0.1/{name}"] == BEHAVIOURS[name].requests


def test_only_a_busy_name_server_is_asked_again(run: Run) -> None:
    assert [run.look_ups[f"{name}.test"] for name in ("dead", "busy", "busier", "private")] == [1, 2, 2, 1]


def test_what_no_outcome_may_ask_for_is_never_asked_for(run: Run) -> None:
    """The names and addresses that were refused reached no server."""
    hosts = {target.partition("/")[0] for target in run.requests}
    assert hosts == {"127.0.0.1", SERVER, "public.test", "busy.test", "xn--bcher-kva.test", *ROBOTS}


def fetch_guarded(folder: Path, urls: list[str], **changes: Any) -> tuple[list[Result], list[str], NameServers]:
    """Fetch one URL after the other with the guard on; the results, the requests, and the name servers."""

    async def go() -> tuple[list[Result], list[str], NameServers]:
        server = HostileServer(folder)
        with _public_server() as names:
            async with server.running() as places:
                tls = ssl.create_default_context(cafile=str(server.authority))
                async with Fetcher(settings(allow_private_addresses=False, **changes), tls) as fetcher:
                    results = [await _fetch(fetcher, url.format(**vars(places))) for url in urls]
            return results, list(server.requests), names

    return asyncio.run(go())


@pytest.mark.parametrize("host", REDIRECTS)
def test_a_redirect_to_a_private_address_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    to_host = Behaviour("blocked_address", response("302 Found", Location=f"http://{host}/image"))
    monkeypatch.setitem(BEHAVIOURS, "away", to_host)
    (result,), requests, _ = fetch_guarded(tmp_path, [f"http://{SERVER}:{{plain}}/away"])
    assert result.outcome == "blocked_address"
    assert requests == [f"{SERVER}/away"]


def test_a_name_that_resolves_differently_the_second_time_gains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Public when it is checked, private afterwards: one look-up serves the check and the connection."""
    url = "http://rebinding.test:{plain}/404"
    results, requests, names = fetch_guarded(tmp_path, [url, url])
    assert [result.outcome for result in results] == ["http_4xx", "http_4xx"]
    assert names.asked["rebinding.test"] == 1
    monkeypatch.setattr(connections, "_DNS_SECONDS", 0)
    monkeypatch.setattr(connections, "_IDLE_SECONDS", 0)
    results, requests, names = fetch_guarded(tmp_path, [url, url])
    assert [result.outcome for result in results] == ["http_4xx", "blocked_address"]
    assert requests == ["rebinding.test/404"]
    assert names.asked["rebinding.test"] == 2


def test_names_are_looked_up_once(tmp_path: Path) -> None:
    results, _, names = fetch_guarded(tmp_path, ["http://public.test:{plain}/image"] * 20)
    assert {result.outcome for result in results} == {"success"}
    assert names.asked["public.test"] == 1


def test_robots_txt_is_read_once_per_origin_and_asked_at_every_redirect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ROBOTS, SERVER, ("success", response(body=b"User-agent: *\nDisallow: /image\n")))
    urls = [f"http://{SERVER}:{{plain}}/{name}" for name in ("404", "410", "image", "redirect", "image?again")]
    results, requests, _ = fetch_guarded(tmp_path, urls, robots_txt=True)
    assert [result.outcome for result in results] == ["http_4xx", "http_4xx", "robots", "robots", "robots"]
    assert requests == [f"{SERVER}/{name}" for name in ("robots.txt", "404", "410", "redirect")]
