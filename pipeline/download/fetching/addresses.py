"""Host names -> addresses that may be reached: looked up in threads of its own, private ones refused."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from aiohttp.abc import AbstractResolver, ResolveResult

_IPV4_IN_LAST_BITS = tuple(ipaddress.IPv6Network(net) for net in ("::/96", "::ffff:0:0/96", "64:ff9b::/96"))
"""IPv6 networks whose addresses stand for IPv4 ones: compatible, mapped, and NAT64."""

_NAMED_ONLY = tuple(
    ipaddress.ip_network(network)
    for network in (
        "169.254.0.0/16",  # link-local, with the metadata services of most clouds
        "fe80::/10",
        "100.100.100.200/32",  # Alibaba
        "168.63.129.16/32",  # Azure
        "192.0.0.192/32",  # Oracle
        "fd00:ec2::/64",  # AWS
        "fd00:42::42/128",  # Scaleway
        "fd20:ce::254/128",  # Google
    )
)
"""Networks that hand out credentials, or that mean another machine on each network, unless they are named."""


class BlockedAddress(Exception):
    """A host that is, or resolves to, an address we must not reach; its only argument says which and why."""


class AddressGuard:
    """The rule for the addresses that a list from strangers may make us reach.

    Args:
        allow_private: let private networks and loopback through, but neither link-local nor metadata addresses.
        allowed: networks, such as `10.0.0.0/8`, that are let through whatever they are.
    """

    def __init__(self, *, allow_private: bool, allowed: Sequence[str] = ()) -> None:
        self._allow_private = allow_private
        self._allowed = [ipaddress.ip_network(network) for network in allowed]

    def refusal(self, address: str) -> str | None:
        """Why an address must not be reached; None if it may be."""
        forms = _forms(address)
        if any(form in network for form in forms for network in self._allowed):
            return None
        if any(form in network for form in forms for network in _NAMED_ONLY):
            return f"{address} is link-local or a metadata service, which only download.allow_addresses lets through"
        return None if self._allow_private or is_public(address) else address


class GuardedResolver(AbstractResolver):
    """The system's look-up of names, which refuses the addresses that a guard refuses.

    The connection goes to the address that was checked here, so a name that resolves differently the next time gains
    nothing. The threads are its own, since dead name servers hold some of them for many seconds each, and are not
    waited for at the end.
    """

    def __init__(self, *, threads: int, guard: AddressGuard | None) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="resolve")
        self._guard = guard

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of `host`.

        Raises:
            OSError: the look-up failed.
            BlockedAddress: the guard refuses one of the addresses.
        """
        look_up = functools.partial(
            socket.getaddrinfo, host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )
        found = await asyncio.get_running_loop().run_in_executor(self._threads, look_up)
        results = []
        for kind, _, protocol, _, place in found:
            address = str(place[0])
            if self._guard is not None and (refusal := self._guard.refusal(address)) is not None:
                raise BlockedAddress(refusal)
            flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
            results.append(
                ResolveResult(hostname=host, host=address, port=port, family=kind, proto=protocol, flags=flags)
            )
        return results

    async def close(self) -> None:
        """Start no more look-ups, and leave those that hang to themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def literal_address(host: str) -> str | None:
    """The address that `host` spells out, in its plain form; None for a name.

    IPv4 has more spellings than the dotted one: decimal, hexadecimal, octal and short, such as 2130706433 or 0x7f.1.
    """
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet: not loopback, private, link-local, multicast or reserved."""
    if "%" in address:  # a scope is one of this machine's networks
        return False
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if any(ip in network for network in _IPV4_IN_LAST_BITS):
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip.sixtofour is not None:
            return is_public(str(ip.sixtofour))
        if ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast


def is_local_name(host: str) -> bool:
    """Return whether a name always means the machine that resolves it (RFC 6761)."""
    return f".{host.lower().rstrip('.')}".endswith(".localhost")


def _forms(address: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """An address without its scope, and the IPv4 address that it stands for if it is an IPv6 one that does."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return [ip]
    if any(ip in network for network in _IPV4_IN_LAST_BITS):
        return [ip, ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)]
    return [ip] if ip.sixtofour is None else [ip, ip.sixtofour]
