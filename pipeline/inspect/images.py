"""Inspection of image shards: each tar file is compared, row by row, with the shard's Parquet table."""

from __future__ import annotations

import bisect
import io
import itertools
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ..contract.arrow.columns import key_texts
from ..contract.arrow.types import is_text, require_distinct
from ..contract.image_shards import ImageShard, read_samples
from ..contract.known_rows import key_names, match_keys
from ..contract.storage import Store
from ..errors import InputError
from ..explain import one_line
from .findings import Examples, Inspection, Report
from .metadata import open_stored_parquet
from .statistics import Repeats, content_hashes, lengths

SAMPLED_IMAGES = 10_000
"""Maximum number of images whose width and height are included in the size distributions."""
_SEED = 0
_COLUMNS = ("key", "status", "error_message", "caption", "width", "height", "original_width", "original_height")
_SIZES = ("width", "height")
_ORIGINAL_SIZES = ("original_width", "original_height")


@dataclass
class ShardTable:
    """Content of a shard's Parquet table, limited to the columns that the inspection uses."""

    rows: int
    images: list[int]
    """Row numbers of the downloaded images, in table order."""
    columns: dict[str, list[Any]] = field(default_factory=dict)
    """Values of the columns that an inspection uses (such as `key` and `caption`), keyed by column name.

    Columns that do not exist in the table are left out.
    """


def read_shard_rows(store: Store, name: str) -> ShardTable:
    """Read the columns of a shard's table that an inspection uses. Columns that the table lacks are left out.

    Args:
        store: folder of the shard.
        name: name of the Parquet file that contains the table.

    Raises:
        InputError: the table is damaged.
    """
    try:
        with open_stored_parquet(store, name) as parquet:
            schema = parquet.schema_arrow
            require_distinct(schema, f"{store.url}/{name}")
            stored = [column for column in _COLUMNS if column in schema.names]
            if "status" in stored and not is_text(schema.field("status").type):
                stored.remove("status")  # another program's column, such as numeric HTTP status codes
            table = parquet.read(columns=stored, use_threads=False)
            table.validate(full=True)  # rejects text that is not UTF-8
            columns: dict[str, list[Any]] = {column: table.column(column).to_pylist() for column in stored}
    except (
        pa.ArrowException,
        OSError,
        KeyError,
        OverflowError,
    ) as error:  # KeyError: a duplicate column; OverflowError: a date after the year 9999
        raise InputError(f"{store.url}/{name} is damaged ({one_line(error)}); download that shard again") from error
    if "key" in columns:
        columns["key"] = key_texts(table.column("key"), f"{store.url}/{name}: column 'key'")
    status = columns.get("status", ["success"] * parquet.metadata.num_rows)
    return ShardTable(parquet.metadata.num_rows, [row for row, s in enumerate(status) if s == "success"], columns)


class ImageInspector:
    """Inspector for the image shards of a folder. Call `inspect` for each shard, and then `finish`.

    Args:
        store: folder of the shards.
        inspection: findings to add to.
        recorded: True for a folder written by `download`. In such a folder, keys must be unique, and the samples in a
            tar file must be in the order of the rows in its table.
    """

    def __init__(self, store: Store, inspection: Inspection, *, recorded: bool) -> None:
        self._store, self._inspection, self._recorded = store, inspection, recorded
        self._names: list[str] = []
        self._first_rows: list[int] = []
        self._rows = self._images = self._headers_read = 0
        self._random = random.Random(_SEED)
        self._sampled: list[tuple[int, int]] = []
        self._keys = Repeats()
        self._empty, self._no_caption, self._not_utf8 = Examples(), Examples(), Examples()
        self._captions, self._bytes = lengths(), lengths()
        self._originals = {column: lengths() for column in _ORIGINAL_SIZES}

    def inspect(self, name: str, table: ShardTable | None, report: Report) -> int:
        """Inspect a shard's tar file, and compare it with the shard's table.

        Args:
            name: name of the shard.
            table: the shard's table; None if it is missing or damaged. The tar file is then inspected on its own.
            report: callback for faults.

        Returns:
            Number of images in the tar file. If the file is damaged, only the images before the damage are counted.
        """
        self._names.append(name)
        self._first_rows.append(self._rows)
        shard = ImageShard(name, "", 0)
        keys: list[str] = []
        image_bytes: list[int] = []
        caption_lengths: list[int] = []
        try:
            for at, sample in enumerate(read_samples(self._store, shard)):
                keys.append(sample.key)
                row = table.images[at] if table is not None and at < len(table.images) else None
                where = f"shard {name}, row {at if row is None else row}"
                if sample.image:
                    image_bytes.append(len(sample.image))
                    self._inspect_size(where, row, sample.key, sample.image, table, report)
                else:
                    report(f"{where}: sample {sample.key!r} has {'no' if sample.image is None else 'an empty'} image")
                if sample.caption is not None:
                    caption_lengths.append(self._inspect_caption(where, row, sample.key, sample.caption, table, report))
                else:
                    self._no_caption.add(1, lambda where=where: [where])  # type: ignore[misc]
        except InputError as error:
            report(f"shard {name}, after {len(keys):,} samples: {error}")
        else:
            if table is not None:
                self._compare_keys(shard, keys, table, report)
        self._bytes.add(np.array(image_bytes))
        self._captions.add(np.array(caption_lengths))
        for column, values in self._originals.items():
            stated = table.columns.get(column, []) if table is not None else []
            values.add(np.array([value for value in stated if isinstance(value, int)]))
        self._inspect_keys(shard, keys if table is None else table.columns.get("key", keys), report)
        return len(image_bytes)

    def _inspect_caption(
        self, where: str, row: int | None, key: str, data: bytes, table: ShardTable | None, report: Report
    ) -> int:
        """Compare a caption in a tar file with the caption in the table, and return its length in characters.

        Empty captions and captions that are not UTF-8 are counted.

        Args:
            where: location of the caption, for messages.
            row: row number in the table; None if the table has no such row.
            key: key of the sample in the tar file.
            data: caption as bytes.
            table: table of the shard, if any.
            report: callback for faults.
        """
        try:
            caption = data.decode(errors="surrogatepass")
        except UnicodeDecodeError:
            caption = data.decode(errors="replace")
            self._not_utf8.add(1, lambda: [where])
        if not caption.strip():
            self._empty.add(1, lambda: [where])
        if table is not None and row is not None and {"key", "caption"} <= set(table.columns):
            stated = table.columns["caption"][row]
            if isinstance(stated, str) and stated != caption and table.columns["key"][row] in key_names(key):
                report(f"{where}: the caption of {key!r} in the tar is not that of its parquet")
        return len(caption)

    def _inspect_size(
        self, where: str, row: int | None, key: str, image: bytes, table: ShardTable | None, report: Report
    ) -> None:
        """Read the width and height of an image if it is selected at random, and compare them with the table's values.

        The images are selected by reservoir sampling (Vitter 1985): at the end, every image in the folder is equally
        likely to be among the selected ones. Only the header of a selected image is read. A fault is reported if the
        header cannot be read, or if the table states a different width or height.
        """
        self._images += 1
        place = self._random.randrange(self._images)
        if place >= SAMPLED_IMAGES:
            return
        from PIL import Image

        from ..images.upright import orientation  # imported here because it loads Pillow

        self._headers_read += 1
        try:
            with Image.open(io.BytesIO(image)) as opened:
                size = opened.size
                is_turned = orientation(opened, image) >= 5
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            report(f"{where}: the image of {key!r} cannot be read ({type(error).__name__})")
            return
        if len(self._sampled) < SAMPLED_IMAGES:
            self._sampled.append(size)
        else:
            self._sampled[place] = size
        if table is not None and row is not None and set(_SIZES) <= set(table.columns):
            stated = tuple(table.columns[column][row] for column in _SIZES)
            same_key = table.columns.get("key", {row: key})[row] in key_names(key)
            # images that are stored as they came have an orientation, which the size in the table may take into account
            sizes = (size, size[::-1]) if is_turned else (size,)
            if None not in stated and stated not in sizes and same_key:
                report(f"{where}: the image of {key!r} is {size[0]}x{size[1]}, its table says {stated[0]}x{stated[1]}")

    def _compare_keys(self, shard: ImageShard, keys: list[str], table: ShardTable, report: Report) -> None:
        """Compare the keys in a tar file with the keys of the images in the shard's table.

        Report a fault if the tar file and the table have different numbers of images. Also report the first position at
        which their keys differ. If `download` did not write the folder, and the keys differ only in their order, add a
        note instead.
        """
        if len(keys) != len(table.images):
            report(f"shard {shard.name}: {len(keys)} images, its parquet says {len(table.images)}")
        if "key" not in table.columns:
            return
        stated = [table.columns["key"][row] for row in table.images]
        try:
            matched = match_keys(stated, keys, shard.table_name)
        except InputError as error:
            report(f"shard {shard.name}: {error}")
            return
        if matched == list(range(len(stated))):
            return
        if not self._recorded and None not in matched and {*matched} == {*range(len(stated))}:
            self._inspection.add_note(f"shard {shard.name}: the tar is in another order than its parquet")
            return
        pairs = itertools.zip_longest(keys, stated)
        at = next((at for at, (key, other) in enumerate(pairs) if key is None or other not in key_names(key)), None)
        if at is None:
            return
        row = table.images[at] if at < len(table.images) else table.rows
        report(
            f"shard {shard.name}, row {row}: the tar has key {keys[at] if at < len(keys) else None!r} where its "
            f"parquet has {stated[at] if at < len(stated) else None!r}"
        )

    def _inspect_keys(self, shard: ImageShard, keys: list[Any], report: Report) -> None:
        """Report missing keys, and store a hash of each key, so that `finish` can find duplicate keys."""
        for row, key in enumerate(keys):
            if key is None:
                report(f"shard {shard.name}, row {row}: no key")
        self._keys.add(content_hashes(keys, len(keys)), self._rows + np.arange(len(keys)))
        self._rows += len(keys)

    def finish(self) -> None:
        """Report the findings about the folder as a whole, such as duplicate keys and value distributions."""
        inspection = self._inspection
        self._empty.report(inspection.add_note, "captions are empty")
        self._no_caption.report(inspection.add_note, "images have no caption")
        self._not_utf8.report(inspection.add_note, "captions are not UTF-8")
        repeated, examples = self._keys.find(most=20)
        report = inspection.add_problem if self._recorded else inspection.add_note
        for row, earlier in examples:
            report(f"{self._place(row)}: has the key of {self._place(earlier)}")
        if repeated > len(examples):
            report(f"{repeated:,} rows have the key of an earlier one")
        inspection.looked_at["images, read to the end"] = self._images
        inspection.looked_at["images, of which the header was read"] = self._headers_read
        inspection.looked_at["images, for the distribution of sizes: a seeded sample"] = len(self._sampled)
        sizes = {column: lengths() for column in _SIZES}
        for column, values in zip(_SIZES, np.array(self._sampled).reshape(-1, 2).T, strict=True):
            sizes[column].add(values)
        distributions = {"caption length in characters": self._captions, "bytes of an image": self._bytes}
        for column, values in (sizes | self._originals).items():
            distributions[f"{column.replace('_', ' ')} in pixels"] = values
        inspection.distributions.update(
            {name: values.to_json() for name, values in distributions.items() if values.rows}
        )

    def _place(self, row: int) -> str:
        """Return a row's location, such as `shard 00002, row 17`, given its row number in the folder."""
        at = bisect.bisect_right(self._first_rows, row) - 1
        return f"shard {self._names[at]}, row {row - self._first_rows[at]}"
