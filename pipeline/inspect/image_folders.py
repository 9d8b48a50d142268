"""Inspects folders of image shards: ours by their records, those of img2dataset and others by their names."""

from __future__ import annotations

import collections

from ..compute.stage import ProgressCallback
from ..contract.image_shards import is_compressed_tar
from ..contract.manifest import Manifest, ShardRecord
from ..contract.storage import TEMPORARY_SUFFIX, Store
from ..errors import InputError
from .findings import Inspection, Tell
from .images import ImageInspector, ShardTable, read_shard_rows

FOREIGN_STAGE = "images without a manifest"
_ENDINGS = (".tar", ".parquet", "_stats.json")


class RecordedImages:
    """Inspects the shards that `download` has recorded, one after the other."""

    def __init__(self, store: Store, found: Inspection, manifest: Manifest) -> None:
        self._store, self._found, self._manifest = store, found, manifest
        self._images = ImageInspector(store, found, ours=True)

    def inspect(self, record: ShardRecord, differing: list[str]) -> None:
        """Inspect one shard. What is wrong inside a file of `differing` is but noted: the file is known as damaged."""
        found, name = self._found, record.name
        tar_name, table_name = f"{name}.tar", f"{name}.parquet"
        for file in (tar_name, table_name):
            if file not in record.files:
                found.problem(f"shard {name}: its record has no {file}")
        tell: Tell = found.note if differing else found.problem
        table = None
        if self._store.size(table_name) is not None:
            try:
                table = read_shard_rows(self._store, table_name)
            except InputError as error:
                tell(f"shard {name}: {error}")
        if table is not None:
            self._compare_counts(record, table, tell)
        if self._store.size(tar_name) is not None:
            self._images.inspect(name, table, tell)

    def _compare_counts(self, record: ShardRecord, table: ShardTable, tell: Tell) -> None:
        if table.rows != record.rows:
            tell(f"shard {record.name}: {record.name}.parquet has {table.rows} rows, its record says {record.rows}")
        success = record.counts.get("success", 0)
        if len(table.images) != success:
            tell(f"shard {record.name}: its parquet has {len(table.images)} images, its record says {success}")
        self._found.count_errors(_messages(table))

    def finish(self) -> None:
        """Look for rows that are missing and files that nobody has recorded, and end the statistics."""
        found, manifest = self._found, self._manifest
        planned = manifest.input.get("rows")
        if planned is None or manifest.rows < planned:  # None until a list of text has been read to its end
            found.problem(
                f"holds {manifest.rows:,} of {'all' if planned is None else f'{planned:,}'} rows: `priorkit download` "
                "is still running or was killed; run it again"
            )
        records = manifest.shards.values()
        recorded = {name for record in records for name in (*record.files, *record.logs)}
        for name in self._store.names():
            if name.endswith(TEMPORARY_SUFFIX):
                found.note(f"{name} was left by a writer that was killed; the next run removes it")
            elif name.endswith(_ENDINGS) and name not in recorded:
                found.problem(f"{name} is in no record: run `priorkit download` again, or remove it if it is not its")
        self._images.finish()


def inspect_foreign_images(store: Store, names: list[str], progress: ProgressCallback) -> Inspection:
    """Inspect a folder of tars, with the tables and statistics of img2dataset where there are any."""
    shards = sorted(name.removesuffix(".tar") for name in names if name.endswith(".tar"))
    tables = {name.removesuffix(".parquet") for name in names if name.endswith(".parquet")}
    found = Inspection(store.url, FOREIGN_STAGE, len(shards), 0, 0)
    for name in filter(is_compressed_tar, names):
        found.problem(f"{name}: image shards must not be compressed; unpack it, such as by gunzip")
    for name in sorted(tables - set(shards)):
        found.problem(f"shard {name}: {name}.tar is missing, though there is {name}.parquet")
    images = ImageInspector(store, found, ours=False)
    for done, name in enumerate(shards):
        progress(done, len(shards), name)
        if not (name.isascii() and name.isdigit()):
            found.problem(f"{name}.tar: image shards are named by number, such as 00000.tar")
        table = None
        if name in tables:
            try:
                table = read_shard_rows(store, f"{name}.parquet")
            except InputError as error:
                found.problem(f"shard {name}: {error}")
        elif tables & set(shards):
            found.problem(f"shard {name}: {name}.parquet is missing, though other shards have theirs")
        statistics = f"{name}_stats.json"
        has_messages = statistics in names and _compare_statistics(store, found, name, statistics, table)
        rows = images.inspect(name, table, found.problem)
        if table is None:
            found.rows += rows
            found.count({"success": rows})
        else:
            found.rows += table.rows
            status = table.columns.get("status", ["success"] * table.rows)
            found.count(collections.Counter(str(value) for value in status))
            if not has_messages:
                found.count_errors(_messages(table))
    progress(len(shards), len(shards), "")
    images.finish()
    found.note("the folder has no manifest: there are no hashes to hold its bytes to")
    return found


def _compare_statistics(store: Store, found: Inspection, shard: str, name: str, table: ShardTable | None) -> bool:
    """Hold img2dataset's statistics of a shard against its table; whether they told of failures."""
    try:
        value = store.read_json(name)
        count, successes = int(value["count"]), int(value["successes"])
        messages = {str(message): int(number) for message, number in value.get("status_dict", {}).items()}
    except (InputError, KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        found.problem(f"shard {shard}: {name} is damaged ({error})")
        return False
    if table is not None and (count, successes) != (table.rows, len(table.images)):
        found.problem(
            f"shard {shard}: {name} counts {count} rows and {successes} images, its parquet {table.rows} and "
            f"{len(table.images)}"
        )
    found.count_errors({message: number for message, number in messages.items() if message != "success"})
    return bool(messages)


def _messages(table: ShardTable) -> collections.Counter[str]:
    """Of the rows that failed."""
    given = table.columns.get("error_message", [])
    return collections.Counter(str(message) for message in given if message is not None)
