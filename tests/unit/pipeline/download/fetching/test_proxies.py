"""Proxy selection: the setting, the environment, and `no_proxy`."""

from __future__ import annotations

import base64

import pytest
from yarl import URL

from priorkit.pipeline.download.fetching.proxies import NoProxy, Proxies, parse_proxy
from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.errors import SettingsError
from priorkit.pipeline.settings import parse_settings

PLAIN, SECURE = URL("http://images.example.org/x"), URL("https://images.example.org/x")


def chosen(setting: str | None, **environment: str) -> list[str | None]:
    """Proxies of an http and of an https URL."""
    proxies = Proxies(setting, environment)
    selected = [proxies.for_url(url) for url in (PLAIN, SECURE)]
    return [None if proxy is None else str(proxy.url) for proxy in selected]


A, B = "http://a:1", "http://b:2"


@pytest.mark.parametrize(
    ("setting", "environment", "expected"),
    [
        (None, {}, [None, None]),
        (None, {"http_proxy": A}, [A, None]),
        (None, {"HTTPS_PROXY": A}, [None, A]),
        (None, {"http_proxy": A, "https_proxy": B}, [A, B]),
        (None, {"all_proxy": A, "https_proxy": B}, [A, B]),
        (None, {"ALL_PROXY": A}, [A, A]),
        (None, {"http_proxy": A, "HTTP_PROXY": B}, [A, None]),
        (None, {"http_proxy": "", "HTTP_PROXY": B}, [None, None]),
        (None, {"HTTP_PROXY": B, "REQUEST_METHOD": "GET"}, [None, None]),
        (None, {"http_proxy": "a:1"}, [A, None]),
        (None, {"http_proxy": "a"}, ["http://a", None]),
        (None, {"http_proxy": A, "https_proxy": A, "all_proxy": "socks5://s:1"}, [A, A]),
        (None, {"all_proxy": A, "no_proxy": "example.org"}, [None, None]),
        (A, {"http_proxy": B}, [A, A]),
        (A, {"no_proxy": "example.org"}, [None, None]),
        ("none", {"http_proxy": A, "all_proxy": "socks5://s:1"}, [None, None]),
    ],
)
def test_the_proxy_comes_from_the_setting_or_the_environment(
    setting: str | None, environment: dict[str, str], expected: list[str | None]
) -> None:
    assert chosen(setting, **environment) == expected


@pytest.mark.parametrize(
    ("text", "host", "port", "expected"),
    [
        ("example.org", "example.org", 80, True),
        ("example.org", "a.b.example.org", 80, True),
        ("example.org", "badexample.org", 80, False),
        (".example.org", "example.org", 80, True),
        ("*.example.org", "a.example.org", 80, True),
        ("Example.ORG", "A.example.org.", 80, True),
        ("x, example.org ,y", "example.org", 80, True),
        ("x example.org", "example.org", 80, True),
        ("example.org:8080", "example.org", 80, False),
        ("example.org:8080", "example.org", 8080, True),
        ("*", "example.org", 80, True),
        ("", "example.org", 80, False),
        (",", "example.org", 80, False),
        ("10.0.0.0/8", "10.1.2.3", 80, True),
        ("10.0.0.7/8", "10.1.2.3", 80, True),
        ("10.0.0.0/8", "11.1.2.3", 80, False),
        ("127.0.0.1", "127.0.0.1", 80, True),
        ("127.0.0.1:90", "127.0.0.1", 90, True),
        ("127.0.0.1", "127.0.0.11", 80, False),
        ("::1", "::1", 80, True),
        ("[::1]", "0:0::1", 80, True),
        ("fd00::/8", "fd12::1", 80, True),
        ("localhost", "localhost", 80, True),
    ],
)
def test_no_proxy_lists_hosts_without_a_proxy(text: str, host: str, port: int, expected: bool) -> None:
    assert NoProxy(text).matches(host, port) is expected


def test_credentials_become_a_header_and_are_not_shown() -> None:
    proxy = parse_proxy("http://us%40er:w%3Ard@a:1/", "http_proxy")
    assert str(proxy.url) == A
    assert base64.b64decode(proxy.headers["Proxy-Authorization"].split()[1]).decode() == "us@er:w:rd"
    assert "Basic" not in repr(proxy)


@pytest.mark.parametrize("text", ["socks5://a:1", "ftp://a:1", "http://", "http://[::1", "http://a:99999", "://"])
def test_a_proxy_that_cannot_be_used_is_named(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^all_proxy is .*expected http://HOST:PORT"):
        Proxies(None, {"ALL_PROXY": text})
    with pytest.raises(SettingsError, match=r"^options: proxy: it is "):
        parse_settings(DownloadSettings, {"proxy": text}, "options")


def test_a_password_is_not_in_a_message() -> None:
    with pytest.raises(SettingsError) as error:
        parse_proxy("socks5://user:secret@a:1", "all_proxy")
    assert "secret" not in str(error.value)
    assert "proxy" not in DownloadSettings(proxy="http://user:secret@a:1").identity()


@pytest.mark.parametrize(("text", "host"), [("127.1:3128", "127.0.0.1"), ("3", "0.0.0.3"), ("http://[::1]:1", "::1")])
def test_the_address_of_a_proxy_gets_its_standard_form(text: str, host: str) -> None:
    assert parse_proxy(text, "download.proxy").url.host == host
