"""Worker that downloads shards with img2dataset, and commits their rows in input order.

img2dataset writes a shard's rows in the order in which their downloads finish, into a working folder that no reader
sees. The worker then writes the same rows and images in the order of the list, under the commit protocol.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from types import TracebackType
from typing import Any

import pyarrow as pa

from ...contract.arrow.parquet import open_parquet
from ...contract.manifest import ShardRecord
from ...contract.storage import Store
from ...errors import PriorkitError
from ..outcomes import SUCCESS
from ..rows import Row, image_schema, reused_rows
from ..settings import DownloadSettings
from ..worker import DownloadTask, row_key, write_shard
from .child import Child
from .columns import img2dataset_order
from .outcomes import img2dataset_outcome
from .request import INPUT_NAME, make_request

_WORKING_PREFIX = ".img2dataset-"
"""Start of the names of working folders. Readers ignore hidden folders."""


def remove_working_folders(store: Store) -> None:
    """Remove the working folders that killed processes left in a local folder. The caller holds the folder's lock."""
    if store.is_local:
        for path in glob.glob(f"{glob.escape(store.root)}/{_WORKING_PREFIX}*"):
            shutil.rmtree(path, ignore_errors=True)


class Img2datasetWorker:
    """Worker that downloads shards one after another with img2dataset. Use it as a context manager.

    Args:
        store: folder that receives the shards.
        settings: download settings.
        settings_fingerprint: fingerprint of the settings, stored in each shard's record.
        on_row: callback for each finished row, in order of completion; None for no callback.
    """

    def __init__(
        self,
        store: Store,
        settings: DownloadSettings,
        settings_fingerprint: str,
        on_row: Callable[[Row], None] | None = None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._settings_fingerprint = settings_fingerprint
        self._on_row = on_row
        self._child = Child()

    def __enter__(self) -> Img2datasetWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.close()

    def __call__(self, task: DownloadTask, following: DownloadTask | None = None) -> ShardRecord:
        """Download and commit one shard, and return its record.

        Args:
            task: shard to download.
            following: ignored; img2dataset downloads one shard at a time.
        """
        task = replace(task, table=task.table.select(img2dataset_order(task.table.column_names)))
        return write_shard(self._store, task, self._settings, self._settings_fingerprint, self._rows(task))

    def _rows(self, task: DownloadTask) -> Generator[Row, None, None]:
        """Download the rows of a task, and yield all its rows in input order.

        If the task is a retry, only the rows with a transient failure are downloaded. All other rows are reused from
        the existing shard.
        """
        values = task.table.to_pylist()
        size = self._settings.rows_per_shard
        keys = [row_key(task.first_row, offset, size) for offset in range(len(values))]
        reused = self._reused(task, values)
        wanted = {key: row for key, row, reuse in zip(keys, values, reused, strict=True) if reuse is None}
        with _working_folder(self._store) as folder:
            _write_input(folder, task.table, [wanted[key]["url"] if key in wanted else "" for key in keys])
            bodies = self._download(task, folder, wanted)
            with tarfile.open(f"{folder}/{task.name}.tar", "r:") as tar:
                downloaded = _Downloaded(folder, task.name, self._settings, tar)
                for key, row_values, row in zip(keys, values, self._reused(task, values), strict=True):
                    yield row if row is not None else downloaded.row(key, row_values, bodies.get(key, 0))

    def _reused(self, task: DownloadTask, values: list[dict[str, Any]]) -> Iterator[Row | None]:
        """Yield one item for each row of a task: the row to reuse, or None if the row is to be downloaded."""
        if task.retry:
            return reused_rows(self._store, task.name, values, img2dataset_outcome)
        return itertools.repeat(None, len(values))

    def _download(self, task: DownloadTask, folder: str, wanted: dict[str, dict[str, Any]]) -> dict[str, int]:
        """Run img2dataset on the list rows in a working folder, and return the size of each response body, by key.

        Args:
            task: shard to download.
            folder: working folder.
            wanted: values of the list columns of each row that is downloaded, by key.
        """
        bodies: dict[str, int] = {}

        def add_row(key: str, status: str, message: str | None, size: int) -> None:
            bodies[key] = size
            if self._on_row is not None and key in wanted:
                meta = {**wanted[key], "status": status, "error_message": message}
                self._on_row(Row(meta, outcome=img2dataset_outcome(meta), body_bytes=size))

        request = make_request(task.name, folder, task.table.column_names, task.bbox_column, self._settings)
        self._child.run(request, add_row)
        return bodies


@contextlib.contextmanager
def _working_folder(store: Store) -> Iterator[str]:
    """Context manager that yields a temporary folder, on the disk of the output folder if that is local."""
    parent = store.root if store.is_local else None
    with tempfile.TemporaryDirectory(prefix=_WORKING_PREFIX, dir=parent, ignore_cleanup_errors=True) as folder:
        yield folder


def _write_input(folder: str, table: pa.Table, urls: list[str | None]) -> None:
    """Write the list rows of a shard, with other URLs, to the file that img2dataset reads.

    img2dataset fails rows with an empty URL without a request.
    """
    table = table.set_column(table.column_names.index("url"), "url", pa.array(urls, pa.string()))
    with open(f"{folder}/{INPUT_NAME}", "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


class _Downloaded:
    """Shard that img2dataset wrote to a working folder.

    Args:
        folder: working folder.
        name: name of the shard.
        settings: download settings.
        tar: the tar file of the shard, opened for reading.
    """

    def __init__(self, folder: str, name: str, settings: DownloadSettings, tar: tarfile.TarFile) -> None:
        self._name, self._encoding, self._tar = name, settings.encode_format, tar
        added = image_schema(pa.schema([]), exif=settings.extract_exif).names
        with open(f"{folder}/{name}.parquet", "rb") as file:
            table = open_parquet(file).read(columns=added, use_threads=False)
        self._results = {row["key"]: row for row in table.to_pylist()}
        self._members = {member.name: member for member in tar}

    def row(self, key: str, values: dict[str, Any], body_bytes: int) -> Row:
        """Return a row with its result.

        Args:
            key: key of the row.
            values: values of the list columns, keyed by column name.
            body_bytes: size of the response body in bytes.

        Raises:
            PriorkitError: img2dataset lost the row or its image.
        """
        results = self._results.get(key)
        if results is None:
            raise PriorkitError(f"img2dataset wrote no row {key} in shard {self._name}; use download.engine=native")
        row = Row({**values, **results}, body_bytes=body_bytes)
        row.outcome = img2dataset_outcome(row.meta)
        if row.outcome == SUCCESS:
            row.image = self._image(key)
        return row

    def _image(self, key: str) -> bytes:
        member = self._members.get(f"{key}.{self._encoding}")
        file = None if member is None else self._tar.extractfile(member)
        if file is None:
            raise PriorkitError(f"img2dataset stored no image {key} in shard {self._name}; use download.engine=native")
        return file.read()
