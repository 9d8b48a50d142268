"""Proxy selection: finds the proxy for a URL from the settings or from the environment variables that curl reads."""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from yarl import URL

from ...errors import SettingsError
from .addresses import literal_address

_SCHEMES = ("http", "https")
"""Supported schemes, both for URLs to fetch and for proxies."""


@dataclass(frozen=True)
class Proxy:
    """URL and credentials of a proxy, stored separately so that error messages cannot reveal the credentials."""

    url: URL
    headers: Mapping[str, str] = field(repr=False)
    """Headers that carry the credentials; empty if the proxy needs none."""


class Proxies:
    """Proxies of one download: the proxy for each URL scheme, and the hosts that are reached without a proxy.

    Args:
        setting: value of `download.proxy`: a URL, the string `none` for no proxy, or None to read the environment.
        environment: environment variables, such as `http_proxy`. Lowercase names take precedence over uppercase names.

    Raises:
        SettingsError: a proxy setting is invalid.
    """

    def __init__(self, setting: str | None, environment: Mapping[str, str]) -> None:
        self._by_scheme: dict[str, Proxy] = {}
        self._bypass = NoProxy("")
        if setting == "none":
            return
        self._bypass = NoProxy(_variable(environment, "no_proxy"))
        for scheme in _SCHEMES:
            name, text = "download.proxy", setting or ""
            for name in () if setting else (f"{scheme}_proxy", "all_proxy"):
                if name == "http_proxy" and "REQUEST_METHOD" in environment and name not in environment:
                    continue  # in a CGI script, the client controls HTTP_PROXY through a Proxy header
                if text := _variable(environment, name):
                    break
            if text:
                self._by_scheme[scheme] = parse_proxy(text, name)

    def __bool__(self) -> bool:
        return bool(self._by_scheme)

    def for_url(self, url: URL) -> Proxy | None:
        """Return the proxy for a URL, or None for a direct connection."""
        proxy = self._by_scheme.get(url.scheme)
        return None if proxy is None or self._bypass.matches(url.raw_host or "", url.port) else proxy


class NoProxy:
    """Hosts that bypass the proxy, parsed from the value of the environment variable `no_proxy`.

    Args:
        text: entries separated by commas or spaces. An entry is an IP address, a network, `*` for all hosts, or a
            host name, which also matches its subdomains. A name or address may end in `:PORT`.
    """

    def __init__(self, text: str) -> None:
        self._names: list[tuple[str, int | None]] = []
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        for entry in re.split(r"[,\s]+", text.strip().lower()):
            try:
                self._networks.append(ipaddress.ip_network(entry.strip("[]"), strict=False))
                continue
            except ValueError:
                pass
            host, port = entry, None
            if match := re.fullmatch(r"(\[[^\]]*\]|[^:]*):(\d{1,5})", entry):
                host, port = match[1].strip("[]"), int(match[2])
            if host := host.removeprefix("*.").strip("."):
                self._names.append((host, port))

    def matches(self, host: str, port: int | None) -> bool:
        """Return True if at least one entry matches the host, so that it is reached without a proxy.

        Args:
            host: host name or IP address in a URL.
            port: port in the URL. An entry that ends in `:PORT` matches only if this port is the same.
        """
        host = host.lower().rstrip(".")
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            pass
        else:
            if any(address in network for network in self._networks):
                return True
        return any(
            (entry_port is None or entry_port == port) and (name == "*" or host == name or host.endswith(f".{name}"))
            for name, entry_port in self._names
        )


def parse_proxy(text: str, source: str) -> Proxy:
    """Parse a proxy URL. `host:port` is short for `http://host:port`.

    Args:
        text: URL, with or without credentials.
        source: name of the setting or variable that contains the text, for error messages.

    Raises:
        SettingsError: the text is not the URL of a supported proxy.
    """
    try:
        url = URL(text.strip() if "://" in text else f"http://{text.strip()}")
        usable = url.scheme in _SCHEMES and bool(url.host) and bool(url.port)
        if usable and (address := literal_address(url.raw_host or "")) is not None:
            url = url.with_host(address)  # aiohttp accepts addresses only in their standard form
        user, password = unquote(url.raw_user or ""), unquote(url.raw_password or "")
    except ValueError:
        url, usable = URL(), False
    if not usable:
        shown = f"a proxy of the kind {url.scheme}" if url.scheme not in ("", *_SCHEMES) else "no URL of a proxy"
        raise SettingsError(f"{source} is {shown}: expected http://HOST:PORT, or download.proxy=none to use no proxy")
    credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
    return Proxy(url.origin(), {"Proxy-Authorization": f"Basic {credentials}"} if user or password else {})


def _variable(environment: Mapping[str, str], name: str) -> str:
    """Return the value of an environment variable, or an empty string if the variable is not set.

    The lowercase `name` is looked up first, then its uppercase form.
    """
    return environment.get(name, environment.get(name.upper(), "")).strip()
