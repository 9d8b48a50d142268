"""Settings of a download: forms that are accepted, and values that are refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.errors import SettingsError
from priorkit.pipeline.settings import parse_settings


def settings(**values: Any) -> DownloadSettings:
    return DownloadSettings.model_validate(values)


@pytest.mark.parametrize(
    ("value", "networks"),
    [
        ("10.0.0.0/8", ("10.0.0.0/8",)),
        ("10.0.0.0/8, fd00::/8", ("10.0.0.0/8", "fd00::/8")),
        (["::1", "10.0.0.0/255.0.0.0", "169.254.169.254"], ("::1/128", "10.0.0.0/8", "169.254.169.254/32")),
        ([], ()),
    ],
)
def test_networks_have_one_form(value: Any, networks: tuple[str, ...]) -> None:
    assert settings(allow_addresses=value).allow_addresses == networks


@pytest.mark.parametrize("value", ["10.0.0.1/8", "example.org", ["10.0.0.0/33"], 10, True, None, [["10.0.0.0/8"]]])
def test_other_networks_are_refused(value: Any) -> None:
    with pytest.raises(SettingsError, match=r"allow_addresses: .*\[10\.0\.0\.0/8"):
        parse_settings(DownloadSettings, {"allow_addresses": value}, "a test")


def test_an_unquoted_no_of_yaml_is_a_resize_mode() -> None:
    assert settings(resize_mode=False).resize_mode == "no"
    with pytest.raises(ValidationError):
        settings(resize_mode=True)


@pytest.mark.parametrize(
    ("encode_format", "quality", "valid"), [("png", 9, True), ("png", 10, False), ("jpg", 10, True)]
)
def test_the_quality_of_png_is_a_level(encode_format: str, quality: int, valid: bool) -> None:
    if valid:
        assert settings(encode_format=encode_format, encode_quality=quality).encode_quality == quality
    else:
        with pytest.raises(ValidationError, match="compression level of 0 to 9"):
            settings(encode_format=encode_format, encode_quality=quality)


@pytest.mark.parametrize("proxy", [None, "none", "proxy.example:3128", "http://user:word@proxy.example:3128"])
def test_a_proxy_is_accepted_as_written(proxy: str | None) -> None:
    assert settings(proxy=proxy).proxy == proxy


def test_a_proxy_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="a proxy of the kind socks5"):
        settings(proxy="socks5://proxy.example:1080")


def test_speed_and_identity_towards_servers_do_not_change_the_folder() -> None:
    changed = {"concurrency": 1, "retries": 9, "user_agent": "me", "proxy": "none", "timeout_seconds": 1.0}
    assert settings(**changed).identity() == settings().identity()
    for name, value in (("image_size", 1), ("max_bytes", 1), ("robots_txt", True), ("allow_private_addresses", True)):
        assert settings(**{name: value}).identity() != settings().identity()
