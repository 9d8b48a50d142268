"""Settings of a download: forms that are accepted, and values that are refused."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from priorkit.pipeline.contract.manifest import fingerprint
from priorkit.pipeline.download.settings import INTERPOLATION_SYNONYMS, DownloadSettings, Interpolation
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


@pytest.mark.parametrize(
    ("changes", "valid"),
    [
        ({"reencode_format": "png", "encode_quality": 9}, True),
        ({"reencode_format": "png", "encode_quality": 10}, False),
        ({"reencode_format": "webp", "encode_quality": 10}, True),
    ],
)
def test_the_quality_is_that_of_the_format_that_is_encoded(changes: dict[str, Any], valid: bool) -> None:
    if valid:
        chosen = settings(encode_format="original", **changes)
        assert chosen.encoder == changes["reencode_format"]
    else:
        with pytest.raises(ValidationError, match="compression level of 0 to 9"):
            settings(encode_format="original", **changes)
    assert settings(encode_format="webp").encoder == "webp"


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({"reencode_format": "png"}, "reencode_format needs encode_format=original"),
        ({"upscale_interpolation": "cubic"}, "upscale_interpolation needs resize_only_if_bigger=false"),
        (
            {"upscale_interpolation": "cubic", "resize_only_if_bigger": False, "resize_mode": "no"},
            "upscale_interpolation needs",
        ),
        ({"downscale_interpolation": "cubic", "resize_mode": "no"}, "downscale_interpolation needs resize_mode"),
    ],
)
def test_a_setting_without_effect_is_refused(changes: dict[str, Any], needed: str) -> None:
    with pytest.raises(SettingsError, match=needed):
        parse_settings(DownloadSettings, changes, "a test")


@pytest.mark.parametrize(
    ("name", "standard"),
    [("bilinear", "linear"), ("bicubic", "cubic"), ("lanczos4", "lanczos"), ("AREA", "area"), ("Bicubic", "cubic")],
)
def test_interpolations_have_one_name(name: str, standard: str) -> None:
    """The names are those that img2dataset accepts, and have its meaning."""
    from priorkit.pipeline.download.decoding.resize import _upstream

    assert settings(downscale_interpolation=name).downscale_interpolation == standard
    assert _upstream.inter_str_to_cv2(name) == _upstream.inter_str_to_cv2(standard)
    names = set(get_args(Interpolation)) | set(INTERPOLATION_SYNONYMS)
    assert names == set(_upstream._INTER_STR_TO_CV2)


@pytest.mark.parametrize("name", ["sinc", 4, None])
def test_other_interpolations_are_refused(name: Any) -> None:
    with pytest.raises(ValidationError):
        settings(downscale_interpolation=name)


CHANGED: dict[str, dict[str, Any]] = {
    "allow_paths": {"allow_paths": True},
    "bbox_column": {"bbox_column": "faces"},
    "downscale_interpolation": {"downscale_interpolation": "cubic"},
    "engine": {"engine": "img2dataset"},
    "extract_exif": {"extract_exif": True},
    "reencode_format": {"reencode_format": "png", "encode_format": "original", "encode_quality": 9},
    "upscale_interpolation": {"upscale_interpolation": "cubic", "resize_only_if_bigger": False},
}


def test_folders_of_earlier_versions_can_be_continued() -> None:
    """Settings that those versions lack are recorded only if they are used."""
    assert set(CHANGED) == DownloadSettings.later_fields - {"img2dataset"}  # which no shard depends on
    assert DownloadSettings.later_fields.isdisjoint(settings().identity())
    for name, changes in CHANGED.items():
        assert settings(**changes).identity()[name] == changes[name]
        assert settings(**changes).identity().keys() - settings().identity().keys() == {name}


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("skip_reencode", "encode_format"), ("disable_all_reencoding", "encode_format"), ("bbox_col", "bbox_column"),
        ("blurring_bbox_col", "bbox_column"),
    ],
)  # fmt: skip
def test_names_of_img2dataset_lead_to_ours(key: str, meant: str) -> None:
    with pytest.raises(SettingsError, match=f"did you mean '{meant}'"):
        parse_settings(DownloadSettings, {key: True}, "a test")


NATIVE_FINGERPRINT = "10dd27e18088d003e5f65ebf83dd9929bfecafca6f11d248a78deecb5d46a530"
"""Fingerprint of the default settings since before there were engines."""


def test_the_native_engine_has_the_identity_that_folders_of_earlier_releases_have() -> None:
    assert fingerprint(settings().identity()) == NATIVE_FINGERPRINT
    assert settings(engine="native", img2dataset={}).identity() == settings().identity()


def test_the_identity_of_img2dataset_has_what_img2dataset_applies() -> None:
    identity = settings(engine="img2dataset").identity()
    assert identity["engine"] == "img2dataset"
    assert identity["image_size"] == 256
    assert not {"img2dataset", "exif_orientation", "max_bytes", "concurrency"} & identity.keys()
    options = {"timeout": 1, "user_agent_token": "me"}
    assert settings(engine="img2dataset", concurrency=1, img2dataset=options).identity() == identity


def test_options_of_img2dataset_need_its_engine() -> None:
    with pytest.raises(ValidationError, match="no effect without engine=img2dataset"):
        settings(img2dataset={"timeout": 1})


@pytest.mark.parametrize("engine", ["native", "img2dataset"])
@pytest.mark.parametrize("concurrency", [None, 3])
def test_dumped_settings_are_read_back_as_they_were(engine: str, concurrency: int | None) -> None:
    """Such as the recipe with all defaults that `recipes validate` prints."""
    made = settings(engine=engine, **({} if concurrency is None else {"concurrency": concurrency}))
    again = settings(**made.model_dump(mode="json"))
    assert again.identity() == made.identity()
    assert again.engine_notes() == made.engine_notes()
    assert engine == "native" or again.img2dataset_threads() == made.img2dataset_threads() == (concurrency or 256)


@pytest.mark.parametrize("token", ["", " me", "me ", "a\nb", "é"])
def test_a_token_that_no_header_can_hold_is_refused(token: str) -> None:
    with pytest.raises(ValidationError):
        settings(engine="img2dataset", img2dataset={"user_agent_token": token})
