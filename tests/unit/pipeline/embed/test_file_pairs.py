"""Folders of image files with captions in text files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from priorkit.pipeline.contract.file_marks import marks_of_read
from priorkit.pipeline.contract.samples import Sample
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.embed.file_pairs import list_file_shards
from priorkit.pipeline.embed.input_marks import input_fingerprint
from priorkit.pipeline.embed.inputs import open_input
from priorkit.pipeline.errors import InputError

from .conftest import PAIRS, samples_of, shards_of, write


def content_of(path: Path, limit: int | None = None, **settings: Any) -> list[str]:
    """Fingerprint each shard by the content of its files."""
    store = open_input(str(path))
    found = []
    for shard in shards_of(path, **settings):
        list(shard.read(store))
        found.append(input_fingerprint(shard, marks_of_read(store, shard.sources(limit)), limit))
    return found


def test_files_are_paired_by_path_in_order(tmp_path: Path) -> None:
    (found,) = samples_of(write(tmp_path, PAIRS))
    assert found == [
        Sample("*", None, b"star"),
        Sample("a photo", b"image a", b"caption a"),
        Sample("b", b"image b", b"caption b"),
        Sample("d [1]?", b"image d", b"caption d"),
        Sample("only text", None, b"text"),
        Sample("sub/c", b"image c", None),
        Sample("猫", b"image cat", b"cat"),
    ]


def test_captions_may_have_no_images(tmp_path: Path) -> None:
    (found,) = samples_of(write(tmp_path, PAIRS), image=False)
    assert [sample.key for sample in found if sample.caption is None] == ["sub/c"]
    assert len(found) == 7
    with pytest.raises(InputError, match="holds no captions"):
        shards_of(write(tmp_path / "images", {"a.jpg": b"1"}), image=False)


def test_files_are_split_into_shards(tmp_path: Path) -> None:
    shards = shards_of(write(tmp_path, PAIRS), rows_per_shard=3)
    assert [(shard.name, shard.samples) for shard in shards] == [("00000", 3), ("00001", 3), ("00002", 1)]


def test_a_changed_file_changes_only_its_shard(tmp_path: Path) -> None:
    folder = write(tmp_path, PAIRS)
    before = content_of(folder, rows_per_shard=4)
    content = (folder / "猫.txt").read_bytes()
    (folder / "猫.txt").write_bytes(content[::-1])
    after = content_of(folder, rows_per_shard=4)
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False]


def test_two_images_with_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="same name"):
        shards_of(write(tmp_path, {"a.jpg": b"1", "a.png": b"2"}))


@pytest.mark.parametrize("extensions", [["input.jpg", "edited.jpg", "mask.png"], ["mask.png", "input.jpg"]])
def test_the_first_extension_of_the_list_is_used(tmp_path: Path, extensions: list[str]) -> None:
    write(tmp_path, {"x.edited.jpg": b"edited", "x.INPUT.jpg": b"input", "x.mask.png": b"mask", "x.txt": b"x"})
    ((sample,),) = samples_of(tmp_path, image_extensions=extensions)
    expected = extensions[0].partition(".")[0].encode()
    assert (sample.key, sample.image, sample.captions) == ("x", expected, (b"x",))
    write(tmp_path, {"x.input.JPG": b"1"})
    with pytest.raises(InputError, match="same name"):
        shards_of(tmp_path, image_extensions=["input.jpg"])


def test_a_file_that_cannot_be_read_is_a_sample_with_an_error(tmp_path: Path) -> None:
    folder = write(tmp_path, PAIRS)
    store, (shard,) = open_input(str(folder)), shards_of(folder)
    (folder / "b.jpg").unlink()
    found = list(shard.read(store))
    (bad,) = (sample for sample in found if sample.error is not None)
    assert bad.key == "b"
    assert str(bad.error).startswith("unreadable: ")


def test_the_sources_of_the_first_pairs_are_their_files(tmp_path: Path) -> None:
    store = Store(str(write(tmp_path, {"a.jpg": b"1", "a.txt": b"1", "b.txt": b"2", "c.jpg": b"3"})))
    (shard,) = list_file_shards(store, 10, image=True)
    assert shard.sources(2) == ("a.jpg", "a.txt", "b.txt")
    assert shard.sources(None) == ("a.jpg", "a.txt", "b.txt", "c.jpg")
    assert (shard.title, shard.samples, shard.tables(store)) == ("a to c", 3, [None])


def test_a_missing_image_names_the_existing_files(tmp_path: Path) -> None:
    ((sample, _),) = samples_of(write(tmp_path, {"a.txt": b"1", "a.heic": b"2", "b.jpg": b"3"}))
    assert sample.image is None
    assert sample.instead.startswith("the sample has .heic, .txt; its image would be a .jpg")


def test_more_pairs_than_are_read_together_keep_their_order(tmp_path: Path) -> None:
    (found,) = samples_of(write(tmp_path, {f"{number:03d}.txt": b"%d" % number for number in range(70)}), image=False)
    assert [(sample.key, sample.caption) for sample in found] == [(f"{n:03d}", b"%d" % n) for n in range(70)]


def test_captions_may_be_in_json_files_or_have_another_extension(tmp_path: Path) -> None:
    write(tmp_path, {"a.jpg": b"1", "a.json": b'{"x": {"y": ["one", "two"]}}', "b.jpg": b"2", "b.json": b"{}"})
    ((a, b),) = samples_of(tmp_path, caption_key="x.y")
    assert (a.captions, b.captions) == ((b"one", b"two"), ())
    assert b.instead == "its .json has no caption at 'x.y'; its keys are none"
    assert samples_of(tmp_path)[0][0].instead.endswith("set embed.caption_key=KEY")
    other = write(tmp_path / "other", {"s.1.input.jpg": b"1", "s.1.jpg": b"2", "s.1.Outputs.txt": b"3"})
    settings = {"image_extensions": ["input.jpg"], "caption_extension": "outputs.txt"}
    ((sample,),) = samples_of(other, **settings)
    assert (sample.key, sample.image, sample.captions) == ("s.1", b"1", (b"3",))
