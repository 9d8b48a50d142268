"""Host names -> addresses that may be reached: looked up in threads of its own, private ones refused."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor

from aiohttp.abc import AbstractResolver, ResolveResult

_IPV4_IN_LAST_BITS = tuple(ipaddress.IPv6Network(net) for net in ("::/96", "::ffff:0:0/96", "64:ff9b::/96"))
"""IPv6 networks whose addresses stand for IPv4 ones: compatible, mapped, and NAT64."""


class BlockedAddress(Exception):
    """A host that is, or resolves to, an address we must not reach; its only argument."""


class GuardedResolver(AbstractResolver):
    """The system's look-up of names, which refuses private addresses unless they are allowed.

    The connection goes to the address that was checked here, so a name that resolves differently the next time gains
    nothing. The threads are its own, since dead name servers hold some of them for many seconds each, and are not
    waited for at the end.
    """

    def __init__(self, *, threads: int, allow_private: bool) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="resolve")
        self._allow_private = allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of `host`.

        Raises:
            OSError: the look-up failed.
            BlockedAddress: one of the addresses is not public.
        """
        look_up = functools.partial(
            socket.getaddrinfo, host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )
        found = await asyncio.get_running_loop().run_in_executor(self._threads, look_up)
        results = []
        for kind, _, protocol, _, place in found:
            address = str(place[0])
            if not self._allow_private and not is_public(address):
                raise BlockedAddress(address)
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
