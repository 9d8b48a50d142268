"""Lists on web servers and on the Hugging Face Hub."""

from __future__ import annotations

import functools
import gzip
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.errors import InputError
from priorkit.pipeline.urls.remote import DiskCopy, _hub_command, ask_server, is_web, shown_address
from priorkit.pipeline.urls.url_list import open_url_list

from ....conftest import QuietHandler, serving

ROWS = [{"url": f"http://h/{number}.jpg", "caption": f"caption {number}"} for number in range(2000)]
CSV = "url,caption\n" + "".join(f"{row['url']},{row['caption']}\n" for row in ROWS)


class ListHandler(QuietHandler):
    """Server of lists. The query says how it answers: `ranges`, `nolength`, `only` (GET), `type`, `name`, `status`."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        path = Path(self.directory) / parts.path.strip("/")
        if "moved" in query:
            self.send_response(302)
            self.send_header("Location", f"/{query['moved']}?ranges=1")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        status = 403 if not with_body and "only" in query else int(query.get("status", 200 if path.is_file() else 404))
        data = path.read_bytes() if path.is_file() else b"no"
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        if "encoded" in query:
            data = gzip.compress(data)
        self.close_connection = "nolength" in query
        if "ranges" in query and asked and status == 200:
            first, _, last = asked.partition("-")
            total, data, status = len(data), data[int(first) : int(last) + 1], 206
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        for header, value in (
            ("Content-Type", query.get("type")),
            ("Content-Disposition", f'attachment; filename="{query["name"]}"' if "name" in query else None),
            ("Content-Encoding", "gzip" if "encoded" in query else None),
            ("Content-Length", None if "nolength" in query else str(len(data))),
        ):
            if value is not None:
                self.send_header(header, value)
        self.end_headers()
        if with_body:
            self.wfile.write(data)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "c.csv").write_text(CSV)
    (folder / "data").write_text(CSV)
    (folder / "c.csv.gz").write_bytes(gzip.compress(CSV.encode()))
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "c.parquet", row_group_size=100)
    with zipfile.ZipFile(folder / "c.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner/c.csv", CSV)
    (folder / "page.csv").write_text("<!doctype html><html></html>")
    (folder / "empty.csv").write_text("")
    with serving(functools.partial(ListHandler, directory=str(folder))) as url:
        yield url


def read(address: str) -> list[dict[str, str]]:
    urls = open_url_list(address, DownloadSettings())
    return [row for batch in urls.batches() for row in batch.to_pylist()]


def refusal(address: str) -> str:
    with pytest.raises(InputError) as error:
        read(address)
    message = str(error.value)
    assert message.count("\n") < 3
    return message


@pytest.mark.parametrize(
    "name",
    [
        "c.csv",
        "c.csv?download=true",
        "c.csv?X-Amz-Signature=a%2Fb%3D&only=1",  # signed for GET alone
        "c.csv?ranges=1&download=true",
        "c.csv?nolength=1",
        "c.csv?encoded=1",
        "c.csv.gz?ranges=1",
        "c.csv.gz",
        "c.parquet?ranges=1",
        "c.parquet?nolength=1",
        "data?file=c.csv",
        "data?name=c.csv",
        "data?type=text/csv;charset=utf-8&ranges=1",
        "data?response-content-disposition=attachment%3B%20filename%3D%22c.csv%22",
        "data?moved=c.csv",
    ],
)
def test_a_list_is_read_however_the_server_sends_it(server: str, name: str) -> None:
    assert read(f"{server}/{name}") == ROWS


@pytest.mark.parametrize("query", ["", "?ranges=1&download=true", "?nolength=1"])
def test_a_member_of_an_archive_on_a_server_is_read(server: str, query: str) -> None:
    assert read(f"zip://inner/c.csv::{server}/c.zip{query}") == ROWS
    assert read(f"zip://inner::{server}/c.zip{query}") == ROWS


def test_a_file_that_a_server_stores_compressed_may_arrive_plain(server: str, tmp_path: Path) -> None:
    """Servers that declare a .gz file as an encoded response have it decoded by the client."""
    shutil.move(tmp_path / "served/c.csv", tmp_path / "served/d.csv.gz")
    assert read(f"{server}/d.csv.gz?encoded=1") == ROWS


def test_only_what_is_needed_of_a_parquet_file_is_requested(server: str) -> None:
    urls = open_url_list(f"{server}/c.parquet?ranges=1", DownloadSettings())
    assert urls.rows == len(ROWS)
    assert urls.files[0].copy is None
    assert open_url_list(f"{server}/c.parquet", DownloadSettings()).files[0].copy is not None


def test_a_copy_is_removed_with_the_list(server: str) -> None:
    urls = open_url_list(f"{server}/c.csv", DownloadSettings())
    location = Path(urls.files[0].location)
    assert location.is_file()
    del urls
    assert not location.exists()


def test_copies_of_killed_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kill = "import os; from priorkit.pipeline.urls.remote import DiskCopy; copy = DiskCopy(); os.kill(os.getpid(), 9)"
    with subprocess.Popen([sys.executable, "-c", kill], env=os.environ | {"TMPDIR": str(tmp_path)}) as process:
        process.wait(600)
    (abandoned,) = tmp_path.iterdir()
    others = [
        abandoned.with_name(abandoned.name.replace(f"-{process.pid}-", f"-{os.getpid()}-")),
        abandoned.with_name(abandoned.name.replace("priorkit-list-", "priorkit-list-other-")),
        abandoned.with_name("priorkit-list-0abc_d12"),  # an earlier version did not name the process
    ]
    for other in others:
        other.touch()
    copy = DiskCopy()
    assert not abandoned.exists()
    assert set(tmp_path.iterdir()) == {*others, Path(copy.path)}


def test_messages_do_not_contain_the_query(server: str) -> None:
    for query in ("ranges=1&", ""):
        message = refusal(f"{server}/page.csv?{query}X-Amz-Signature=secret")
        assert "page.csv?...: cannot be read as csv: it is a web page; use the address of the file itself" in message
        assert "secret" not in message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.csv", "none.csv: no such file or folder (HTTP 404)"),
        (
            "c.csv?status=403",
            "c.csv?...: the server does not allow access (HTTP 403); a signed address may have expired",
        ),
        ("c.csv?status=503", "the server answers HTTP 503 Service Unavailable; try again later"),
        ("data", "the server does not say what kind of list it is"),
        ("c.zip", "c.zip is an archive; name the list in it, as in zip://urls.csv::ADDRESS"),
        ("empty.csv", "the list is empty"),
        ("empty.csv?ranges=1", "the list is empty"),
    ],
)
def test_an_answer_that_is_no_list_is_explained(server: str, name: str, message: str) -> None:
    assert message in refusal(f"{server}/{name}")


def test_a_server_that_cannot_be_reached_is_explained() -> None:
    assert "the server cannot be reached (Cannot connect to host 127.0.0.1:9" in refusal("http://127.0.0.1:9/c.csv?a=b")


def test_a_list_for_which_the_disk_is_too_small_is_refused(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("priorkit.pipeline.urls.remote.shutil.disk_usage", lambda folder: usage(10_000))
    assert "set TMPDIR to a larger disk" in refusal(f"{server}/c.csv")
    assert read(f"{server}/c.csv?ranges=1") == ROWS


def test_the_answer_of_a_server_has_names_and_ranges(server: str) -> None:
    answer = ask_server(f"{server}/data?ranges=1&a=b.tsv&name=c%20d.csv&type=Text/CSV")
    assert answer.names == ("data", "1", "b.tsv", "c d.csv", "CSV")
    assert (answer.bytes, answer.has_ranges, answer.format) == (len(CSV), True, "csv")
    answer = ask_server(f"{server}/c.csv?nolength=1")
    assert (answer.bytes, answer.has_ranges, answer.is_encoded) == (None, False, False)


def test_the_index_page_of_a_folder_is_a_list_of_files(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.csv").write_text(f"url,caption\n{number},x\n")
    (tmp_path / "other.md").write_text("x")
    with serving(functools.partial(QuietHandler, directory=str(tmp_path))) as url:
        for address in (f"{url}/", f"{url}/*.csv"):
            assert [row["url"] for row in read(address)] == ["0", "1", "2"]
        assert "no index page of the server links to such files" in refusal(f"{url}/*.parquet")


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://u:p@h/a.csv?sig=x", "https://h/a.csv?..."),
        ("https://h/a.csv", "https://h/a.csv"),
        ("zip://a.csv::https://h/b.zip?sig=x", "zip://a.csv::https://h/b.zip?..."),
        ("s3://b/a?.csv", "s3://b/a?.csv"),
        ("a?.csv", "a?.csv"),
    ],
)
def test_addresses_are_shown_without_secrets(address: str, shown: str) -> None:
    assert shown_address(address) == shown
    assert is_web(address) == address.startswith("https")


class HubHandler(QuietHandler):
    """Hub with the repository `datasets/org/name`, which has two lists."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        content = CSV.encode()
        first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        headers = {"ETag": '"x"', "X-Repo-Commit": "b" * 40, "Accept-Ranges": "bytes"}
        status, data = 404, b"{}"
        if path.startswith("/api/datasets/org/name/tree/main"):
            folder = {"type": "directory", "path": "data", "size": 0, "oid": "c" * 40}
            files = [{**folder, "type": "file", "path": f"data/{at}.csv", "size": len(content)} for at in range(2)]
            is_root = path.endswith("/main")
            if is_root or path.endswith("/data"):
                status, data = (
                    200,
                    json.dumps([folder] if is_root and "recursive=true" not in self.path else files).encode(),
                )
        elif path in ("/api/datasets/org/name", "/api/datasets/org/name/revision/main"):
            about = {"id": "org/name", "sha": "b" * 40, "siblings": [], "private": False, "tags": []}
            status, data = 200, json.dumps(about).encode()
        elif path.startswith("/datasets/org/name/resolve/main/data/"):
            status, data = (206, content[int(first) : int(last) + 1]) if first else (200, content)
        if status == 206:
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        elif status == 404:
            headers["X-Error-Code"] = "EntryNotFound" if "org/name/" in path else "RepoNotFound"
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()


OPEN_HUB_LISTS = (
    "import sys; from priorkit.pipeline.urls.url_list import open_url_list\n"
    "from priorkit.pipeline.download.settings import DownloadSettings\n"
    "from priorkit.pipeline.errors import InputError\n"
    "for address in sys.argv[1:]:\n"
    "    try: print(sum(batch.num_rows for batch in open_url_list(address, DownloadSettings()).batches()))\n"
    "    except InputError as error: print(error)\n"
)


def hub_lines(*addresses: str, **environment: str) -> list[str]:
    """Return the number of rows or the error message of each list on the hub.

    The hub's address is read when its library is imported.
    """
    return subprocess.run(
        [sys.executable, "-c", OPEN_HUB_LISTS, *addresses],
        env=os.environ | environment, capture_output=True, text=True, check=True, timeout=600,
    ).stdout.splitlines()  # fmt: skip


def test_lists_on_the_hub_are_read(tmp_path: Path) -> None:
    with serving(HubHandler) as url:
        lines = hub_lines(
            "hf://datasets/org/name/data/0.csv", "hf://datasets/org/name/data/*.csv", "hf://datasets/org/name",
            "hf://datasets/org/name/data/none.csv", "hf://datasets/org/name/x/*.csv", "hf://datasets/org/other/a.csv",
            "hf://name", HF_ENDPOINT=url, HF_HUB_OFFLINE="0",
        )  # fmt: skip
    assert lines[:3] == ["2000", "4000", "4000"]
    assert "none.csv: no such file or folder" in lines[3]
    assert "no file matches this pattern" in lines[4]
    assert "the hub has no repository 'datasets/org/other' that you may read" in lines[5]
    assert "`hf auth login`" in lines[5]
    assert "write hf://datasets/ORG/NAME/FILE" in lines[6]


def test_a_hub_that_cannot_be_reached_is_explained() -> None:
    address = "hf://datasets/org/name@main/data/urls.parquet"
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}):
        (message,) = hub_lines(address, **environment)
        assert message.startswith(f"{address}: the Hugging Face Hub cannot be reached")
        assert (
            "`hf download --repo-type dataset org/name data/urls.parquet --revision main --local-dir list`" in message
        )


@pytest.mark.parametrize(
    ("repository", "file", "command"),
    [
        ("datasets/o/n", "a/*.parquet", "hf download --repo-type dataset o/n --include 'a/*.parquet' --local-dir list"),
        ("o/n@x", "", "hf download o/n --revision x --local-dir list"),
        ("o/n@x;y", "a b.csv", "hf download o/n 'a b.csv' --revision 'x;y' --local-dir list"),
    ],
)
def test_the_command_copies_files_or_patterns_of_them(repository: str, file: str, command: str) -> None:
    assert _hub_command(repository, f"{repository}/{file}".rstrip("/")) == command
