"""Address guard: which addresses are public or allowed, spellings of addresses, and lookups of names."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from priorkit.pipeline.download.fetching.addresses import (
    AddressGuard,
    BlockedAddress,
    GuardedResolver,
    is_public,
    literal_address,
)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True),
        ("1.1.1.1", True),
        ("2001:4860:4860::8888", True),
        ("2606:4700:4700::1111", True),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("100.127.255.255", False),
        ("127.0.0.1", False),
        ("127.255.255.254", False),
        ("169.254.169.254", False),
        ("172.16.0.1", False),
        ("172.32.0.1", True),
        ("192.0.2.1", False),
        ("192.168.0.1", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("239.255.255.255", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::127.0.0.1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::10.0.0.1", False),
        ("64:ff9b::8.8.8.8", True),
        ("2002:7f00:1::", False),
        ("2002:808:808::", True),
        ("fc00::1", False),
        ("fd12:3456::1", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("2606:4700::1%eth0", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("ff0e::1", False),
        ("2001:db8::1", False),
    ],
)
def test_which_addresses_are_public(address: str, expected: bool) -> None:
    assert is_public(address) is expected


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("0177.0.0.01", "127.0.0.1"),
        ("017700000001", "127.0.0.1"),
        ("0", "0.0.0.0"),
        ("8.8.2056", "8.8.8.8"),
        ("::1", "::1"),
        ("0:0::1", "::1"),
        ("::ffff:127.0.0.1", "::ffff:7f00:1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("localhost", None),
        ("example.org", None),
        ("127.0.0.1.", None),
        ("1.2.3.4.5", None),
        ("256.1.1.1", None),
        ("4294967296", None),
        ("0x7f.example", None),
        ("", None),
        ("１２７.0.0.1", None),
    ],
)
def test_every_spelling_of_an_address_is_parsed(host: str, address: str | None) -> None:
    found = literal_address(host)
    assert found == address or {found, address} == {
        "::ffff:127.0.0.1",
        "::ffff:7f00:1",
    }  # Python 3.13 writes the former


def resolve(host: str, *, allow_private: bool) -> list[str]:
    async def run() -> list[str]:
        resolver = GuardedResolver(threads=2, guard=AddressGuard(allow_private=allow_private))
        try:
            return [result["host"] for result in await resolver.resolve(host, 80)]
        finally:
            await resolver.close()

    return asyncio.run(run())


def test_a_name_of_this_machine_is_resolved_only_if_allowed() -> None:
    assert set(resolve("localhost", allow_private=True)) <= {"127.0.0.1", "::1"}
    with pytest.raises(BlockedAddress, match=r"127\.0\.0\.1|::1"):
        resolve("localhost", allow_private=False)


def test_a_dead_name_is_an_os_error() -> None:
    with pytest.raises(OSError):
        resolve("nosuch.invalid", allow_private=True)


def test_a_hanging_lookup_delays_neither_others_nor_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    real = socket.getaddrinfo

    def lookup(host: str, *rest: object, **options: object) -> object:
        if host == "hangs":
            released.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "released")
        return real(host, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)

    async def run() -> list[str]:
        resolver = GuardedResolver(threads=2, guard=None)
        hanging = asyncio.create_task(resolver.resolve("hangs"))
        await asyncio.sleep(0.01)
        addresses = [result["host"] for result in await resolver.resolve("127.0.0.1", 80)]
        hanging.cancel()
        await resolver.close()
        return addresses

    try:
        assert asyncio.run(run()) == ["127.0.0.1"]
    finally:
        released.set()


@pytest.mark.parametrize(
    ("address", "closed", "private", "named"),
    [
        ("8.8.8.8", True, True, True),
        ("10.1.2.3", False, True, True),
        ("127.0.0.1", False, True, False),
        ("192.168.0.1", False, True, False),
        ("::1", False, True, False),
        ("fd12:3456::1", False, True, False),
        ("::ffff:10.1.2.3", False, True, True),
        ("64:ff9b::10.1.2.3", False, True, True),
        ("169.254.169.254", False, False, True),
        ("169.254.170.2", False, False, False),
        ("::ffff:169.254.169.254", False, False, True),
        ("64:ff9b::a9fe:a9fe", False, False, True),
        ("2002:a9fe:a9fe::", False, False, True),
        ("fe80::1", False, False, False),
        ("fe80::1%eth0", False, False, False),
        ("fd00:ec2::254", False, False, True),
        ("fd20:ce::254", False, False, False),
        ("100.100.100.200", False, False, False),
        ("192.0.0.192", False, False, False),
        ("168.63.129.16", False, False, False),
        ("100.100.100.201", False, True, False),
    ],
)
def test_the_guard_allows_by_network(address: str, closed: bool, private: bool, named: bool) -> None:
    allowed = ["10.0.0.0/8", "169.254.169.254", "fd00:ec2::254"]
    assert (AddressGuard(allow_private=False).refusal(address) is None) is closed
    assert (AddressGuard(allow_private=True).refusal(address) is None) is private
    assert (AddressGuard(allow_private=False, allowed=allowed).refusal(address) is None) is named
