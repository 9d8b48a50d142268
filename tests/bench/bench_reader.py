"""Shuffled batches against embedding-reader's own sequential pass over the same shards, and opening 10,000 shards.

Run in the ordinary environment, as `make bench` does. About 3 minutes on 2 cores, and 2 GB of disk and of page cache.
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from embedding_reader import EmbeddingReader

from priorkit.pipeline.contract.commit import ShardCommit, open_stage
from priorkit.pipeline.contract.manifest import Manifest
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.read.batches import BatchStream
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.pipeline.read.settings import ReadSettings

DIM, SHARD_ROWS, BATCH = 768, 40_000, 1024
KINDS = ("img_emb", "text_emb")
SPARSE_ROWS = 100_000


def write(folder: Path, rows: int) -> None:
    """Embeddings as clip-retrieval writes them."""
    random = np.random.default_rng(0)
    for kind in (*KINDS, "metadata"):
        (folder / kind).mkdir(parents=True)
    for shard, start in enumerate(range(0, rows, SHARD_ROWS)):
        count = min(SHARD_ROWS, rows - start)
        for kind in KINDS:
            values = random.standard_normal((count, DIM), np.float32)
            values /= np.linalg.norm(values, axis=1, keepdims=True)
            np.save(folder / f"{kind}/{kind}_{shard:04d}.npy", values.astype(np.float16))
        names = [f"{start + row:09d}" for row in range(count)]
        table = pa.table({"image_path": names, "caption": names, "url": names})
        pq.write_table(table, folder / f"metadata/metadata_{shard:04d}.parquet")


def write_sparse(folder: Path, shards: int) -> None:
    """A folder as `embed` leaves it, of shards whose arrays are holes; its manifest is what a real one is."""
    store = Store(str(folder))
    clip = {"embed_dim": DIM, "token_width": None}
    size = 128 + SPARSE_ROWS * DIM * 2
    with open_stage(store, Manifest("embed", {}, {"shards": shards}, {"clip": clip, "clip_settings": {}})) as stage:
        commit = ShardCommit(store, "0000", input="input", settings=stage.manifest.settings_fingerprint)
        for kind in (*KINDS, "metadata"):
            with commit.create(f"{kind}/{kind}_0000.{'parquet' if kind == 'metadata' else 'npy'}") as file:
                file.write(b"0")
        (folder / "failures").mkdir()
        record = commit.commit(rows=SPARSE_ROWS, counts={"success": SPARSE_ROWS})
        stage.add(record)
        stage.finish()
    manifest = json.loads((folder / "manifest.json").read_text())
    first = manifest["shards"].pop("0000")
    for shard in range(shards):
        name = f"{shard:04d}"
        files = {}
        for kind in KINDS:
            with open(folder / f"{kind}/{kind}_{name}.npy", "wb") as file:
                file.truncate(size)
            files[f"{kind}/{kind}_{name}.npy"] = {"bytes": size, "sha256": "0" * 64}
        for kind in ("metadata", "failures"):
            with open(folder / f"{kind}/{kind}_{name}.parquet", "wb") as file:
                file.truncate(1000)
            files[f"{kind}/{kind}_{name}.parquet"] = {"bytes": 1000, "sha256": "0" * 64}
        manifest["shards"][name] = {**first, "name": name, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


class MemoryGrowth:
    """How much the resident memory of this process grows while it runs, mapped files included, in megabytes."""

    def __init__(self) -> None:
        gc.collect()
        self._done = threading.Event()
        self._before = self._most = self._resident()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _resident(self) -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self._most = max(self._most, self._resident())

    def stop(self) -> float:
        """The growth at its highest."""
        self._done.set()
        self._thread.join()
        return max(self._most, self._resident()) - self._before


def shuffled(dataset: EmbeddingDataset) -> int:
    """One epoch of shuffled batches; returns the rows."""
    stream = BatchStream(dataset, "train", batch_size=BATCH, seed=0)
    batches = stream.batches()
    rows = sum(len(batch.rows) for batch in islice(batches, stream.steps_per_epoch))
    batches.close()  # type: ignore[attr-defined]
    return rows


def sequential(folder: Path) -> int:
    """embedding-reader's pass over images and texts, in turn of its own batches; returns the rows."""
    readers = [EmbeddingReader(str(folder / kind), file_format="npy") for kind in KINDS]
    passes = [reader(batch_size=BATCH, show_progress=False) for reader in readers]
    return sum(len(image) for (image, _), (text, _) in zip(*passes, strict=True))


def plain(folder: Path) -> int:
    """All arrays read into one buffer of 8 MB; returns the bytes."""
    buffer, done = memoryview(bytearray(1 << 23)), 0
    for path in sorted(folder.glob("*_emb/*.npy")):
        with open(path, "rb", buffering=0) as file:
            while read := file.readinto(buffer):
                done += read
    return done


def compare(folder: Path, rows: int, rounds: int, results: list[dict[str, Any]]) -> None:
    """Time the three ways in turns."""
    write(folder, rows)
    dataset = EmbeddingDataset(str(folder), ReadSettings(validation_fraction=0, test_fraction=0))
    shuffled(dataset)  # builds the split plan, and fills the page cache
    growth: dict[str, list[float]] = {"priorkit": [], "embedding-reader": []}

    def watched(name: str, action: Callable[[], int]) -> Callable[[], None]:
        def run() -> None:
            memory = MemoryGrowth()
            assert action() == rows
            growth[name].append(memory.stop())

        return run

    actions = {
        "priorkit": watched("priorkit", lambda: shuffled(dataset)),
        "embedding-reader": watched("embedding-reader", lambda: sequential(folder)),
        "plain": lambda: plain(folder),
    }
    seconds = harness.in_turns(actions, rounds)
    size = rows * DIM * 2 * len(KINDS)
    for name, label in (
        ("priorkit", "priorkit, shuffled, every norm checked"),
        ("embedding-reader", "embedding-reader, sequential"),
        ("plain", "plain reads of the files, one thread"),
    ):
        harness.report(
            results, bench="reading", what=label, rows=rows, bytes=size, seconds=seconds[name],
            gigabytes_per_second=[size / 1e9 / one for one in seconds[name]],
            times_embedding_reader=harness.paired_ratio(seconds["embedding-reader"], seconds[name]),
            most_growth_megabytes=max(growth.get(name, [0.0])),
        )  # fmt: skip


def open_many(folder: Path, shards: int, rounds: int, results: list[dict[str, Any]]) -> None:
    """Time opening a folder of many shards."""
    write_sparse(folder, shards)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        dataset = EmbeddingDataset(str(folder))
        seconds.append(time.perf_counter() - start)
        assert dataset.count == shards * SPARSE_ROWS
    harness.report(results, bench="opening", shards=shards, rows=shards * SPARSE_ROWS, seconds=seconds)


def main() -> None:
    """Run it."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--rows", type=int, default=700_000, help="rows that are read: 3 KB each")
    parser.add_argument("--shards", type=int, default=10_000, help="shards that are opened")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        compare(Path(name), arguments.rows, arguments.rounds, results)
    with tempfile.TemporaryDirectory() as name:
        open_many(Path(name), arguments.shards, arguments.rounds, results)
    if not arguments.no_page:
        reading = harness.table(
            [result for result in results if result["bench"] == "reading"],
            {
                "what": "{what}", "rows": "{rows:,}", "seconds": "{seconds:.2f}", "GB/s": "{gigabytes_per_second:.2f}",
                "times embedding-reader": "{times_embedding_reader:.2f}",
                "most growth of memory, MB": "{most_growth_megabytes:.0f}",
            },
        )  # fmt: skip
        opening = harness.table(
            [result for result in results if result["bench"] == "opening"],
            {"shards": "{shards:,}", "rows": "{rows:,}", "seconds to open": "{seconds:.2f}"},
        )
        body = f"""
Image and text embeddings of dimension {DIM} in float16, in shards of {SHARD_ROWS:,} rows, all in the page cache, in
batches of {BATCH:,}. priorkit reads random blocks of 4,096 rows, checks the norm of every row and shuffles windows of
32,768 rows; batches stay float16. embedding-reader, with its default settings, reads images and texts in the order of
the files and gives float32. Plain reads are what copying from the page cache costs. Growth is of all resident memory,
at its highest in any round.

{reading}

Opening a folder of ours from its manifest, of sparse files:

{opening}
"""
        packages = ("torch", "numpy", "pyarrow", "embedding-reader")
        harness.write_page("reader", "Reading shuffled batches", body, results, packages)


if __name__ == "__main__":
    main()
