"""Samples and the messages about their files."""

from __future__ import annotations

import os

import pytest

from priorkit.pipeline.contract.samples import Place, Sample, SampleFiles, encodable, name_extensions


def test_places_are_ordered_by_part_and_then_by_position() -> None:
    assert sorted([Place(1, 0), Place(0, 9), Place(0, 2)]) == [Place(0, 2), Place(0, 9), Place(1, 0)]


def test_samples_are_equal_by_content_wherever_they_are() -> None:
    assert Sample("a", b"1", None, place=Place(1, 2)) == Sample("a", b"1", None, instead="x")
    assert Sample("a", b"1", None) != Sample("a", b"1", b"")


def test_a_name_that_is_not_utf8_is_escaped() -> None:
    assert encodable("größe.jpg") == "größe.jpg"
    assert encodable(os.fsdecode(b"a\xff.jpg")) == "a\\udcff.jpg"


def test_five_extensions_are_named() -> None:
    assert name_extensions("abcde").startswith("the sample has .a, .b, .c, .d, .e;")
    assert name_extensions("abcdef").startswith("the sample has .a, .b, .c, .d, .e, ...;")


@pytest.mark.parametrize(
    ("content", "key", "captions"),
    [
        (b'{"caption": "a"}', "caption", (b"a",)),
        (b'{"caption": ["a", null, "b"]}', "caption", (b"a", b"b")),
        (b'{"meta": {"en": "a"}}', "meta.en", (b"a",)),
        (b'{"meta.en": "a", "meta": {"en": "b"}}', "meta.en", (b"a",)),
        (b'{"sentences": [{"raw": "a"}, {"raw": "b"}]}', "sentences.raw", (b"a", b"b")),
        (b'{"caption": ""}', "caption", (b"",)),
        ('{"caption": "ü"}'.encode(), "caption", ("ü".encode(),)),
    ],
)
def test_captions_are_read_from_json(content: bytes, key: str, captions: tuple[bytes, ...]) -> None:
    assert SampleFiles(caption_extension="json", caption_key=key).read_captions(content) == (captions, "")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"text": "a", "url": "u"}', "its .json has no caption at 'caption'; its keys are text, url"),
        (b'{"caption": null}', "its .json has no caption at 'caption'; its keys are caption"),
        (b'{"caption": 5}', "its .json has 5 at 'caption', not text"),
        (b'{"caption": {"en": "a"}}', "its .json has {'en': 'a'} at 'caption', not text"),
        (b'{"caption"', "its .json is not JSON ("),
        (b"\xff", "its .json is not JSON ("),
        (b"[" * 100_000, "its .json is not JSON (values are nested too deeply)"),
        (b'"a"', "its keys are none"),
    ],
)
def test_a_json_file_without_the_caption_says_what_it_has(content: bytes, problem: str) -> None:
    captions, found = SampleFiles(caption_extension="json", caption_key="caption").read_captions(content)
    assert captions == ()
    assert problem in found


def test_a_name_is_split_at_a_known_extension() -> None:
    rules = SampleFiles(("input.jpg", "jpg"), "outputs.txt")
    assert rules.split("a/x.1.Input.JPG") == ("a/x.1", "Input.JPG")
    assert rules.split("x.1.jpg") == ("x.1", "jpg")
    assert rules.split("x.outputs.txt") == ("x", "outputs.txt")
    assert SampleFiles().split("x.input.jpg") == ("x.input", "jpg")
    assert (rules.is_image("JPG"), rules.is_image("png"), SampleFiles().is_image("PNG")) == (True, False, True)


def test_the_first_image_in_the_tar_counts_or_the_first_extension_of_the_list() -> None:
    members = {"seg.png": 0, "png": 1, "jpg": 2}
    assert SampleFiles().image_of(members) == 1
    assert SampleFiles(("jpg", "png")).image_of(members) == 2
    assert SampleFiles(("webp",)).image_of(members) is None


@pytest.mark.parametrize(
    ("extensions", "keys", "proposal"),
    [
        (["input.jpg", "txt"], (), "set embed.image_extensions=[input.jpg]"),
        (["a.jpg", "b.txt"], (), "set embed.image_extensions=[a.jpg]; set embed.caption_extension=b.txt"),
        (["jpg", "json"], ("url", "Text"), "set embed.caption_key=Text (its keys are url, Text)"),
        (["jpg", "json"], (), "set embed.caption_key=KEY"),
        (["jpg", "caption"], (), "set embed.caption_extension=caption"),
    ],
)
def test_settings_that_would_read_the_sample_are_proposed(
    extensions: list[str], keys: tuple[str, ...], proposal: str
) -> None:
    assert name_extensions(extensions, json_keys=keys).endswith(proposal)


def test_nothing_is_proposed_where_it_would_not_help() -> None:
    for extensions in (["jpg"], ["txt"], ["jpg", "txt", "json"], ["mp4"]):
        assert name_extensions(extensions).endswith("its caption a .txt")
    assert name_extensions(["json"], SampleFiles(caption_extension="json", caption_key="a")).endswith("a .json")
