"""Marks of files: recognition by size and time, or by hash."""

from __future__ import annotations

import datetime
import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

from priorkit.pipeline.contract import file_marks
from priorkit.pipeline.contract.file_marks import FileMark, from_json, identify, read_marks, to_json
from priorkit.pipeline.contract.file_stamps import remote_stamp, stamps
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import InputError

NOW = datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc)


def write(path: Path, content: bytes, seconds: float = 1e9) -> None:
    path.write_bytes(content)
    os.utime(path, (seconds, seconds))


def test_a_file_is_read_only_if_its_size_or_time_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    write(tmp_path / "a b.npy", b"one")
    marks = identify(store, ["a b.npy"], {})
    assert marks["a b.npy"].sha256 == hashlib.sha256(b"one").hexdigest()
    monkeypatch.setattr(file_marks, "_HASHES", file_marks._Hashes())
    with monkeypatch.context() as patch:
        patch.setattr(file_marks, "hash_file", None)  # would fail
        assert identify(store, ["a b.npy"], marks) == marks
    write(tmp_path / "a b.npy", b"one", 2e9 - 1e9 + 1)
    touched = identify(store, ["a b.npy"], marks)
    assert touched["a b.npy"].sha256 == marks["a b.npy"].sha256
    assert touched != marks
    write(tmp_path / "a b.npy", b"two", 1e9 + 2)
    assert identify(store, ["a b.npy"], touched)["a b.npy"].sha256 == hashlib.sha256(b"two").hexdigest()


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_a_very_recent_or_future_time_is_not_trusted(tmp_path: Path, seconds: float) -> None:
    write(tmp_path / "a", b"one", time.time() + seconds)
    assert identify(Store(str(tmp_path)), ["a"], {})["a"].modified is None


def test_a_link_is_recognised_by_its_target_and_its_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, name.encode())
    link, store = tmp_path / "link", Store(str(tmp_path))
    link.symlink_to("one")
    marks = identify(store, ["link"], {})
    assert marks["link"].is_of(stamps(store, ["link"])["link"])
    link.unlink()
    link.symlink_to("two")  # of the same size and time
    assert not marks["link"].is_of(stamps(store, ["link"])["link"])


def test_a_link_to_a_folder_is_recognised_by_its_target(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "a", name.encode())
    (tmp_path / "all").mkdir()
    for link, inner in ((tmp_path / "link", "a"), (tmp_path / "all/link", "link/a")):
        store = Store(str(link if inner == "a" else link.parent))
        link.symlink_to(tmp_path / "one")
        marks = identify(store, [inner], {})
        assert marks[inner].is_of(stamps(store, [inner])[inner])
        link.unlink()
        link.symlink_to(tmp_path / "two")  # whose file is of the same size and time
        assert identify(store, [inner], marks)[inner].sha256 == hashlib.sha256(b"two").hexdigest()


def test_a_missing_file_raises_or_gets_a_mark(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(InputError, match=r"/gone is missing; restore it"):
        identify(store, ["gone"], {})
    marks = identify(store, ["gone"], {}, lenient=True)
    write(tmp_path / "gone", b"back")
    assert identify(store, ["gone"], marks)["gone"] != marks["gone"]


@pytest.mark.parametrize(
    ("described", "modified", "settled"),
    [
        ({"ETag": '"abc"', "LastModified": NOW}, 'ETag="abc"', True),
        ({"generation": "7", "crc32c": "x", "updated": "2020-01-02T00:00:00Z"}, "crc32c=x generation=7", True),
        ({"LastModified": NOW}, repr(NOW.timestamp()), True),
        ({"updated": "2020-01-02T00:00:00Z"}, repr(NOW.timestamp()), True),
        ({"created": NOW.replace(year=2999)}, None, False),
        ({"modified": "yesterday"}, None, False),
        ({}, None, False),
    ],
)
def test_stamps_of_remote_files(described: dict[str, Any], modified: str | None, settled: bool) -> None:
    stamp = remote_stamp({"name": "a", "size": 3, **described})
    assert (FileMark.of(stamp, "hash").modified, stamp.settled) == (modified, settled)


def test_remote_files_are_hashed_again_when_they_are_written_again() -> None:
    store = Store("memory://marks")
    for content in (b"one", b"two"):
        with store.fs.open(f"{store.root}/folder/a", "wb") as file:
            file.write(content)
        (mark,) = identify(store, ["folder/a"], {}).values()
        assert mark.sha256 == hashlib.sha256(content).hexdigest()


def test_invalid_marks_are_left_out(tmp_path: Path) -> None:
    mark = FileMark(3, "1", "hash")
    assert from_json(to_json({"b": mark, "a": mark})) == {"a": mark, "b": mark}
    for value in (None, [], {"a": 1}, {"a": {"bytes": 1}}, {"a": {"bytes": "x", "modified": None, "sha256": "y"}}):
        assert from_json(value) == {}
    (tmp_path / "marks.json").write_text("{")
    assert read_marks(Store(str(tmp_path)), "marks.json") == read_marks(Store(str(tmp_path)), "none.json") == {}


def test_long_hashing_reports_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_marks, "_REPORT_SECONDS", -1.0)
    notes: list[str] = []
    for name in ("a", "b"):
        write(tmp_path / name, b"x")
    identify(Store(str(tmp_path)), ["a", "b"], {}, notes.append)
    assert [note.rpartition("/")[2].partition(":")[2] for note in notes] == [" 0.0 of 0.0 GB"] * 2
