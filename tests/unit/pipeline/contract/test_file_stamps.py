"""Stamps of local and remote files."""

from __future__ import annotations

import datetime
import os
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from priorkit.pipeline.contract.file_stamps import NO_STAMP, Stamp, file_stamp, path_stamp, remote_stamp, stamps
from priorkit.pipeline.contract.storage import Store

from ....conftest import ImageServer


def test_a_local_stamp_is_size_and_time_and_settles_with_age(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"123")
    store = Store(str(tmp_path))
    assert not stamps(store, ["a"])["a"].settled
    os.utime(path, ns=(7, 7))
    assert stamps(store, ["a", "none", "a/none"]) == {"a": Stamp(3, "7", True)}
    assert path_stamp(store.fs, str(path)) == file_stamp(store, str(path), {}) == Stamp(3, "7", True)
    assert path_stamp(store.fs, str(tmp_path / "none")) == NO_STAMP


def test_a_link_has_the_stamp_of_its_target_and_the_path(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"123")
    os.utime(tmp_path / "target", ns=(7, 7))
    (tmp_path / "link").symlink_to("target")
    stamp = stamps(Store(str(tmp_path)), ["link"])["link"]
    assert stamp == Stamp(3, f"7 {os.path.realpath(tmp_path / 'target')}", True)


def test_files_on_an_object_store_are_stamped_from_one_listing_per_folder(requests: list[str]) -> None:
    store = Store(f"memory://{uuid.uuid4().hex}")
    for number in range(10):
        with store.create(f"a/{number}") as file:
            file.write(b"x" * number)
    requests.clear()
    found = stamps(store, ["a/3", "a/7", "a/none", "b/none"])
    assert {name: stamp.bytes for name, stamp in found.items()} == {"a/3": 3, "a/7": 7}
    assert requests.count("ls") == 2


def test_files_on_a_web_server_are_stamped_from_their_headers(image_server: ImageServer) -> None:
    """The server's listing has no sizes or times, and an index page may replace it."""
    (image_server.folder / "a").mkdir()
    for name in ("x", "y"):
        (image_server.folder / "a" / name).write_bytes(b"123")
        os.utime(image_server.folder / "a" / name, (OLD.timestamp(), OLD.timestamp()))
    (image_server.folder / "a/index.html").write_text("nothing")
    found = stamps(Store(image_server.url), ["a/x", "a/y", "a/none"])
    assert found == dict.fromkeys(("a/x", "a/y"), Stamp(3, repr(OLD.timestamp()), True))


NOW = time.time()
OLD = datetime.datetime(2020, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)


@pytest.mark.parametrize(
    ("entry", "stamp"),
    [
        ({"size": 5, "ETag": '"x"', "LastModified": OLD}, Stamp(5, 'ETag="x"', True)),
        ({"size": 5, "md5Hash": "m", "generation": 7}, Stamp(5, "generation=7 md5Hash=m", True)),
        ({"size": 5, "mtime": OLD.timestamp()}, Stamp(5, repr(OLD.timestamp()), True)),
        ({"size": 5, "LastModified": OLD}, Stamp(5, repr(OLD.timestamp()), True)),
        ({"size": 5, "created": OLD.replace(tzinfo=None)}, Stamp(5, repr(OLD.timestamp()), True)),
        ({"size": 5, "updated": "2020-01-02T03:04:05Z"}, Stamp(5, repr(OLD.timestamp()), True)),
        ({"size": 5, "Last-Modified": "Thu, 02 Jan 2020 03:04:05 GMT"}, Stamp(5, repr(OLD.timestamp()), True)),
        ({"size": 5, "updated": "yesterday"}, Stamp(5, None, False)),
        ({"size": None}, Stamp(0, None, False)),
        ({"size": 5, "mtime": NOW + 3600}, Stamp(5, repr(NOW + 3600), False)),
    ],
)
def test_an_entry_of_a_listing_gives_tags_or_a_time(entry: dict[str, Any], stamp: Stamp) -> None:
    assert remote_stamp(entry) == stamp
