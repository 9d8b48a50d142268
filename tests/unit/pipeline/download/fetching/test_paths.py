"""Images at local and remote paths: where a path leads, what is read there, and what is not."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from priorkit.pipeline.download.fetching import paths
from priorkit.pipeline.download.fetching.paths import PathReader, base_of, is_http, paths_hint
from priorkit.pipeline.download.outcomes import FetchError
from priorkit.pipeline.download.settings import DownloadSettings


def settings(**changes: Any) -> DownloadSettings:
    return DownloadSettings(**{"allow_paths": True, "timeout_seconds": 30.0, **changes})


def read(texts: list[str], base: str | None, **changes: Any) -> list[bytes | str]:
    """Read all paths at once, and return each content or error text."""

    async def run() -> list[bytes | str]:
        reader = PathReader(settings(**changes), base)

        async def one(text: str) -> bytes | str:
            try:
                return await reader.read(reader.locate(text))
            except FetchError as error:
                return str(error)

        try:
            return list(await asyncio.gather(*map(one, texts)))
        finally:
            reader.close()

    return asyncio.run(run())


def located(text: str, base: str | None = "/lists") -> str:
    """Return the location for a value of the URL column, or the error text."""
    reader = PathReader(settings(), base)
    try:
        return reader.locate(text)
    except FetchError as error:
        return str(error)
    finally:
        reader.close()


@pytest.mark.parametrize(
    ("text", "base", "location"),
    [
        ("a.jpg", "/lists", "/lists/a.jpg"),
        ("b/a.jpg", "/", "/b/a.jpg"),
        ("../images/a b%20.jpg", "/lists", "/lists/../images/a b%20.jpg"),
        ("./12:30.jpg", "/lists", "/lists/./12:30.jpg"),
        ("/data/a.jpg", None, "/data/a.jpg"),
        ("/data/a.jpg", "s3://bucket", "/data/a.jpg"),
        ("file:///data/a%20b.jpg", None, "/data/a b.jpg"),
        ("FILE:/data/a.jpg", "s3://bucket", "/data/a.jpg"),
        ("file://localhost/a.jpg", None, "/a.jpg"),
        ("s3://other/a.jpg", "/lists", "s3://other/a.jpg"),
        ("a.jpg", "s3://bucket/lists", "s3://bucket/lists/a.jpg"),
        ("../images/a.jpg", "s3://bucket/lists", "s3://bucket/images/a.jpg"),
        ("a.jpg", "https://h/lists/urls.csv?download=true", "https://h/lists/a.jpg"),
    ],
)
def test_a_path_leads_to_a_location(text: str, base: str | None, location: str) -> None:
    assert located(text, base) == location


@pytest.mark.parametrize(
    ("text", "base", "error"),
    [
        ("a.jpg", None, "bad_url: a relative path in a list inside an archive"),
        ("file://server/a.jpg", "/lists", "bad_url: a file on the host 'server'"),
        ("file:a.jpg", "/lists", "bad_url: a file: URL with a relative path"),
        ("s3:bucket/a.jpg", "/lists", "bad_url: expected s3://"),
        ("s3://bucket/a.zip::http://169.254.169.254/", "/lists", "bad_url: expected s3://..., without a chain"),
        (
            "simplecache::http://169.254.169.254/",
            "/lists",
            "bad_scheme: simplecache is not http, https, file or one of",
        ),
        ("ftp://h/a.jpg", "/lists", "bad_scheme: ftp is not http, https, file or one of abfs,"),
        ("data:image/png;base64,AAAA", "/lists", "bad_scheme: data is not"),
        ("memory://a.jpg", "/lists", "bad_scheme: memory is not"),
        ("C:\\a.jpg", "/lists", "bad_scheme: c is not"),
    ],
)
def test_other_locations_are_refused(text: str, base: str | None, error: str) -> None:
    assert located(text, base).startswith(error)


@pytest.mark.parametrize(
    ("text", "is_path"),
    [
        ("a.jpg", True), (" /a.jpg", True), ("file:///a", True), ("s3://b/a", True), ("hf://datasets/a/b/c", True),
        ("ftp://h/a", False), ("data:,a", False), ("C:\\a", False),
    ],
)  # fmt: skip
def test_the_setting_is_named_for_paths_only(text: str, is_path: bool) -> None:
    assert bool(paths_hint(text)) == is_path
    assert is_http("HTTPS://h/a")
    assert not is_http(text)


def test_the_base_is_the_folder_of_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "odd [1]"
    folder.mkdir()
    (folder / "urls.csv").write_text("url\n")
    monkeypatch.chdir(tmp_path)
    for source in ("odd [1]/urls.csv", "odd [1]", "odd [1]/", f"file://{folder}/urls.csv"):
        assert base_of(source) == str(folder)
    (tmp_path / "urls.csv").write_text("url\n")
    assert base_of("*.csv") == base_of("urls.csv") == base_of("par*/*.csv") == str(tmp_path)
    fsspec.filesystem("memory").pipe_file("/lists/urls.csv", b"url\n")
    assert base_of("memory://lists/urls.csv") == "memory:///lists"
    assert base_of("https://h/urls.csv?x=1") == "https://h/urls.csv?x=1"
    assert base_of("zip://urls.csv::/data/lists.zip") is None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.jpg").write_bytes(b"content")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "ten.jpg").write_bytes(bytes(10))
    (tmp_path / "eleven.jpg").write_bytes(bytes(11))
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to("a.jpg")
    (tmp_path / "broken.jpg").symlink_to("gone.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    return tmp_path


def test_files_are_read_up_to_the_limit(folder: Path) -> None:
    names = ["a.jpg", "empty.jpg", "link.jpg", "ten.jpg", "eleven.jpg", f"file://{folder}/a.jpg"]
    assert read(names, str(folder), max_bytes=10) == [
        b"content", b"", b"content", bytes(10), "too_large: more than 10 bytes", b"content",
    ]  # fmt: skip


def test_what_is_no_file_is_named(folder: Path) -> None:
    names = ["gone.jpg", "broken.jpg", "folder.jpg", "pipe.jpg", "a.jpg/b.jpg", "nul\0.jpg", "x" * 300]
    found = read(names, str(folder))
    assert all(str(outcome).startswith("no_file: ") for outcome in found), found
    assert found[0] == f"no_file: {folder}/gone.jpg: No such file or directory"
    assert found[3] == f"no_file: {folder}/pipe.jpg: not a regular file"


def test_endless_files_are_not_read() -> None:
    assert read(["/dev/zero", "/dev/null"], None) == [
        "no_file: /dev/zero: not a regular file", "no_file: /dev/null: not a regular file",
    ]  # fmt: skip


class Blocked(PathReader):
    """Reader whose reads wait for an event, as on a storage server that does not answer."""

    event: threading.Event

    def _load(self, location: str) -> bytes:
        if location.endswith("slow"):
            self.event.wait(60)
        return location.encode()


def test_a_read_that_hangs_meets_the_deadline_and_keeps_only_its_own_thread() -> None:
    async def run() -> None:
        reader = Blocked(settings(timeout_seconds=0.2, concurrency=1), None)
        reader.event = threading.Event()
        with pytest.raises(FetchError, match=r"timeout: not read within 0\.2 s") as error:
            await reader.read("/slow")
        assert error.value.outcome == "timeout"
        waiting = asyncio.create_task(reader.read("/a"))  # which no thread is free for yet
        await asyncio.sleep(0.5)
        assert not waiting.done()
        reader.event.set()
        assert await waiting == b"/a"
        reader.close()

    asyncio.run(run())


def test_as_many_files_are_read_at_once_as_there_are_threads(folder: Path) -> None:
    assert read(["a.jpg"] * 500, str(folder), concurrency=3) == [b"content"] * 500


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A file system in memory that stands for remote storage."""
    monkeypatch.setattr(paths, "STORAGE_SCHEMES", frozenset({"memory"}))
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/images/a.jpg", b"content")
    fs.pipe_file("/images/empty.jpg", b"")
    fs.pipe_file("/images/eleven.jpg", bytes(11))
    yield fs
    fs.store.clear()


def test_remote_files_are_read_up_to_the_limit(storage: Any) -> None:
    names = ["a.jpg", "empty.jpg", "eleven.jpg", "memory://images/a.jpg", "gone.jpg"]
    *found, gone = read(names, "memory://images", max_bytes=10)
    assert found == [b"content", b"", "too_large: more than 10 bytes", b"content"]
    assert str(gone).startswith("no_file: memory://images/gone.jpg")


def test_storage_that_is_not_reached_may_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        [outcome] = read(["s3://bucket/a.jpg"], None, timeout_seconds=60.0)
    assert str(outcome).startswith("connection: ")


def test_storage_that_denies_access_may_be_tried_again(storage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials may have expired. s3fs raises this error for them."""

    def denied(*arguments: Any, **options: Any) -> bytes:
        raise PermissionError("The provided token has expired.")

    monkeypatch.setattr(type(storage), "cat_file", denied)
    monkeypatch.setattr(type(storage), "info", denied)
    assert read(["a.jpg"], "memory://images") == ["connection: memory://images/a.jpg: The provided token has expired."]


def test_a_local_file_that_may_not_be_read_is_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: str, flags: int) -> int:  # root may read any file
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(paths, "_open_without_blocking", denied)
    assert read(["a.jpg"], str(folder)) == [f"no_file: {folder}/a.jpg: Permission denied"]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(url: str) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    [outcome] = read(["s3://bucket/a.jpg"], None)
    assert str(outcome).startswith("bad_scheme: s3://bucket: Install s3fs")
