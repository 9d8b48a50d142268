"""Inspection of folders with image shards.

The manifest that `download` wrote lists the shards. In a folder without a manifest, such as a folder that img2dataset
wrote, each tar file is a shard.
"""

from __future__ import annotations

import collections

from ..compute.stage import ProgressCallback
from ..contract.image_shards import lost_tables
from ..contract.manifest import Manifest, ShardRecord
from ..contract.storage import TEMPORARY_SUFFIX, Store
from ..contract.tar_names import is_tar, natural_key, tar_stem, unpack_command
from ..errors import InputError
from .findings import Inspection, Report
from .images import ImageInspector, ShardTable, read_shard_rows

FOREIGN_STAGE = "images without a manifest"
_ENDINGS = (".tar", ".parquet", "_stats.json")


class RecordedImages:
    """Inspector for a folder of image shards that `download` wrote.

    Call `inspect` for each shard in the order of the shard names, and then `finish`.

    Args:
        store: folder to inspect.
        inspection: findings to add to.
        manifest: manifest of the folder.
    """

    def __init__(self, store: Store, inspection: Inspection, manifest: Manifest) -> None:
        self._store, self._inspection, self._manifest = store, inspection, manifest
        self._images = ImageInspector(store, inspection, recorded=True)

    def inspect(self, record: ShardRecord, differing: list[str]) -> None:
        """Inspect the files of a shard.

        Args:
            record: manifest entry of the shard.
            differing: names of the shard's files that are missing or whose hash differs from the record. They are
                already reported as problems. If the list is not empty, further faults in the shard are reported as
                notes.
        """
        inspection, name = self._inspection, record.name
        tar_name, table_name = f"{name}.tar", f"{name}.parquet"
        for file in (tar_name, table_name):
            if file not in record.files:
                inspection.add_problem(f"shard {name}: its record has no {file}")
        report: Report = inspection.add_note if differing else inspection.add_problem
        table = None
        if self._store.size(table_name) is not None:
            try:
                table = read_shard_rows(self._store, table_name)
            except InputError as error:
                report(f"shard {name}: {error}")
        if table is not None:
            self._compare_counts(record, table, report)
        if self._store.size(tar_name) is not None:
            self._images.inspect(name, table, report)

    def _compare_counts(self, record: ShardRecord, table: ShardTable, report: Report) -> None:
        """Compare the numbers of rows and images in a shard's table with the shard's record in the manifest.

        The number of failed rows for each error message in the table is added to `Inspection.errors`.
        """
        if table.rows != record.rows:
            report(f"shard {record.name}: {record.name}.parquet has {table.rows} rows, its record says {record.rows}")
        success = record.counts.get("success", 0)
        if len(table.images) != success:
            report(f"shard {record.name}: its parquet has {len(table.images)} images, its record says {success}")
        self._inspection.count_errors(_messages(table))

    def finish(self) -> None:
        """Report missing rows, then files that the manifest does not list, then findings about the whole folder."""
        inspection, manifest = self._inspection, self._manifest
        planned = manifest.input.get("rows")
        if planned is None or manifest.rows < planned:  # None until a text list has been read completely
            inspection.add_problem(
                f"holds {manifest.rows:,} of {'all' if planned is None else f'{planned:,}'} rows: `priorkit download` "
                "is still running or was killed; run it again"
            )
        records = manifest.shards.values()
        recorded = {name for record in records for name in (*record.files, *record.logs)}
        for name in self._store.names():
            if name.endswith(TEMPORARY_SUFFIX):
                inspection.add_note(f"{name} was left by a writer that was killed; the next run removes it")
            elif name.endswith(_ENDINGS) and name not in recorded:
                inspection.add_problem(
                    f"{name} is in no record: run `priorkit download` again, or remove it if it is not its"
                )
        self._images.finish()


def inspect_foreign_images(store: Store, names: list[str], progress: ProgressCallback) -> Inspection:
    """Inspect a folder of tar files without a manifest.

    If img2dataset's tables and statistics are present, compare the tar files with them.

    Args:
        store: folder to inspect.
        names: names of the files in the folder.
        progress: callback that receives the number of inspected shards, the total, and the name of the next shard.
    """
    problems: list[str] = []
    tars = _readable_tars(names, problems.append)
    shards = list(tars)
    tables = {name.removesuffix(".parquet") for name in names if name.endswith(".parquet")}
    inspection = Inspection(store.url, FOREIGN_STAGE, len(shards), 0, 0)
    for problem in problems:
        inspection.add_problem(problem)
    for name in lost_tables(names, tars):
        stem = name.removesuffix(".parquet")
        inspection.add_problem(f"shard {stem}: {stem}.tar is missing, though there is {name}")
    images = ImageInspector(store, inspection, recorded=False)
    for done, name in enumerate(shards):
        progress(done, len(shards), name)
        table = None
        if name in tables:
            try:
                table = read_shard_rows(store, f"{name}.parquet")
            except InputError as error:
                inspection.add_problem(f"shard {name}: {error}")
        elif tables & set(shards):
            inspection.add_problem(f"shard {name}: {name}.parquet is missing, though other shards have theirs")
        statistics = f"{name}_stats.json"
        has_messages = statistics in names and _compare_statistics(store, inspection, name, statistics, table)
        rows = images.inspect(name, table, inspection.add_problem, tars[name])
        if table is None:
            inspection.rows += rows
            inspection.count({"success": rows})
        else:
            inspection.rows += table.rows
            status = table.columns.get("status", ["success"] * table.rows)
            inspection.count(collections.Counter(str(value) for value in status))
            if not has_messages:
                inspection.count_errors(_messages(table))
    progress(len(shards), len(shards), "")
    images.finish()
    inspection.add_note("the folder has no manifest: there are no hashes to hold its bytes to")
    return inspection


def _readable_tars(names: list[str], report: Report) -> dict[str, str]:
    """Return the names of the tars that `embed` would read, keyed by the name without extension, in natural order.

    Tars with an unsupported compression, and a second tar that differs only in its compression, are reported.
    """
    tars: dict[str, str] = {}
    for name in sorted(filter(is_tar, names), key=natural_key):
        if command := unpack_command(name):
            report(f"{name}: its compression is not read; unpack it by `{command} {name}`")
        elif (other := tars.setdefault(tar_stem(name), name)) != name:
            report(f"{name}: {other} is there too; move one of them away")
    return tars


def _compare_statistics(store: Store, inspection: Inspection, shard: str, name: str, table: ShardTable | None) -> bool:
    """Compare the numbers of rows and images in img2dataset's statistics for a shard with the shard's table.

    The statistics also contain the number of failed rows for each error message, which is added to `Inspection.errors`.

    Args:
        store: folder to inspect.
        inspection: findings to add to.
        shard: name of the shard.
        name: name of the file with the statistics.
        table: the shard's table; None if it is missing or damaged.

    Returns:
        True if the statistics list the number of rows for each status. In that case, the caller must not count the
        error messages in the table, because that would count the same failures twice. False if there is no such list,
        or if the file is damaged.
    """
    try:
        value = store.read_json(name)
        count, successes = int(value["count"]), int(value["successes"])
        messages = {str(message): int(number) for message, number in value.get("status_dict", {}).items()}
    except (InputError, KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        inspection.add_problem(f"shard {shard}: {name} is damaged ({error})")
        return False
    if table is not None and (count, successes) != (table.rows, len(table.images)):
        inspection.add_problem(
            f"shard {shard}: {name} counts {count} rows and {successes} images, its parquet {table.rows} and "
            f"{len(table.images)}"
        )
    inspection.count_errors({message: number for message, number in messages.items() if message != "success"})
    return bool(messages)


def _messages(table: ShardTable) -> collections.Counter[str]:
    """Return the number of failed rows for each error message in a table."""
    messages = table.columns.get("error_message", [])
    return collections.Counter(str(message) for message in messages if message is not None)
