"""Protection against URLs that would make this machine contact internal servers (server-side request forgery).

`AddressGuard` decides which IP addresses may be contacted, and `GuardedResolver` applies its decisions to host names.
Private, loopback, link-local and cloud metadata addresses are blocked unless the settings allow them.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from aiohttp.abc import AbstractResolver, ResolveResult

_IPV4_IN_LAST_BITS = tuple(ipaddress.IPv6Network(net) for net in ("::/96", "::ffff:0:0/96", "64:ff9b::/96"))
"""IPv6 networks whose addresses end in an IPv4 address (32 bits): IPv4-compatible, IPv4-mapped and NAT64."""

_RESTRICTED = tuple(
    ipaddress.ip_network(network)
    for network in (
        "169.254.0.0/16",  # link-local, including the metadata services of most clouds
        "fe80::/10",
        "100.100.100.200/32",  # Alibaba
        "168.63.129.16/32",  # Azure
        "192.0.0.192/32",  # Oracle
        "fd00:ec2::/64",  # AWS
        "fd00:42::42/128",  # Scaleway
        "fd20:ce::254/128",  # Google
    )
)
"""Networks of link-local addresses and cloud metadata services, blocked unless `allow_addresses` includes them.

Metadata services hand out credentials, and a link-local address refers to a different machine on each network.
"""


class BlockedAddress(Exception):
    """Raised when a host is a blocked address or resolves to one. The message names the address."""


class AddressGuard:
    """Rule that decides which IP addresses may be contacted to fetch URLs from an untrusted list.

    Public addresses are allowed, except those of cloud metadata services.

    Args:
        allow_private: True to also allow addresses that are not public, such as private and loopback addresses.
            Link-local and cloud metadata addresses stay blocked unless `allowed` includes them.
        allowed: networks whose addresses are always allowed, such as `10.0.0.0/8`.
    """

    def __init__(self, *, allow_private: bool, allowed: Sequence[str] = ()) -> None:
        self._allow_private = allow_private
        self._allowed = [ipaddress.ip_network(network) for network in allowed]

    def refusal(self, address: str) -> str | None:
        """Return None if an IP address is allowed, or an error message that contains the address if it is blocked."""
        forms = _forms(address)
        if any(form in network for form in forms for network in self._allowed):
            return None
        if any(form in network for form in forms for network in _RESTRICTED):
            return f"{address} is link-local or a metadata service, which only download.allow_addresses lets through"
        return None if self._allow_private or is_public(address) else address


class GuardedResolver(AbstractResolver):
    """Resolver that uses the system's name lookup, and raises an error if a host name resolves to a blocked address.

    Connections are made only to addresses that have been checked. A host name that later resolves to another address
    therefore cannot bypass the guard.

    Lookups run in a dedicated thread pool, because a name server that does not answer blocks a thread for many
    seconds. `close` does not wait for these threads.

    Args:
        threads: maximum number of simultaneous lookups.
        guard: rule that decides which addresses are allowed; None to allow all addresses.
    """

    def __init__(self, *, threads: int, guard: AddressGuard | None) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="resolve")
        self._guard = guard

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of `host`.

        Raises:
            OSError: the lookup failed.
            BlockedAddress: the guard blocks at least one of the addresses.
        """
        lookup = functools.partial(
            socket.getaddrinfo, host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )
        entries = await asyncio.get_running_loop().run_in_executor(self._threads, lookup)
        results = []
        for kind, _, protocol, _, socket_address in entries:
            address = str(socket_address[0])
            if self._guard is not None and (refusal := self._guard.refusal(address)) is not None:
                raise BlockedAddress(refusal)
            flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
            results.append(
                ResolveResult(hostname=host, host=address, port=port, family=kind, proto=protocol, flags=flags)
            )
        return results

    async def close(self) -> None:
        """Cancel lookups that have not started, without waiting for lookups in progress."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def literal_address(host: str) -> str | None:
    """Return the standard form of `host` if it is an IP address, or None if it is a name.

    IPv4 addresses are recognized in every notation that `inet_aton` accepts. These include a single decimal number,
    hexadecimal, octal and shortened notation, such as 2130706433 or 0x7f.1 for 127.0.0.1.
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
    """Return True if an address is public: not loopback, private, link-local, multicast or reserved."""
    if "%" in address:  # a scope ID refers to a network interface of this machine
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
    """Return True if a host name is `localhost` or one of its subdomains.

    Such a name always refers to the machine that resolves it (RFC 6761).
    """
    return f".{host.lower().rstrip('.')}".endswith(".localhost")


def _forms(address: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Return a list: an IP address without its scope ID and, if it contains an IPv4 address, that address too.

    For example, the IPv6 address `::ffff:10.0.0.1` contains the IPv4 address `10.0.0.1`.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return [ip]
    if any(ip in network for network in _IPV4_IN_LAST_BITS):
        return [ip, ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)]
    return [ip] if ip.sixtofour is None else [ip, ip.sixtofour]
