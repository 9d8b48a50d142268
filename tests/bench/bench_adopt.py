"""`priorkit adopt` against copying, flushing and hashing the same bytes, and against embedding-reader's pass.

Run in the ordinary environment, as `make bench` does. About 5 minutes on 2 cores, and 12 GB of disk.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PRIORKIT = str(Path(sys.executable).parent / "priorkit")
BLOCK = 1 << 18


def write(folder: Path, rows: int, dim: int) -> None:
    """Unit vectors as one `.npy` file of float16, and as a table with one column of float32 lists of a fixed size."""
    random = np.random.default_rng(0)
    (folder / "npy").mkdir()
    (folder / "parquet").mkdir()
    array = np.lib.format.open_memmap(folder / "npy/image.npy", "w+", np.float16, (rows, dim))
    schema = pa.schema([("key", pa.int64()), ("image_embedding", pa.list_(pa.float32(), dim))])
    with pq.ParquetWriter(folder / "parquet/a.parquet", schema) as writer:
        for start in range(0, rows, BLOCK):
            values = random.standard_normal((min(BLOCK, rows - start), dim), np.float32)
            values /= np.linalg.norm(values, axis=1, keepdims=True)
            array[start : start + len(values)] = values
            lists = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), dim)
            writer.write_table(pa.table([pa.array(np.arange(start, start + len(values))), lists], schema))
    array.flush()


def copy(source: Path, target: Path) -> None:
    """Copy a file, flush it to disk, and hash the copy."""
    subprocess.run(["cp", source, target], check=True)
    with open(target, "rb") as file:
        os.fsync(file.fileno())
    subprocess.run(["sha256sum", target], check=True, stdout=subprocess.DEVNULL)
    target.unlink()


def adopt(source: Path, target: Path) -> int:
    """Adopt a folder; returns the largest resident memory of the command, in megabytes."""
    shutil.rmtree(target, ignore_errors=True)
    command = [PRIORKIT, "adopt", str(source), str(target), "--not-clip", "random"]
    # a small process in between, since the figure includes what the parent had in memory when it started the command
    done = subprocess.run([sys.executable, "-S", "-c", WATCH, *command], check=True, stdout=subprocess.PIPE)
    return int(done.stdout)


WATCH = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""
READ = """
import sys
from embedding_reader import EmbeddingReader
reader = EmbeddingReader(sys.argv[1], file_format="parquet", embedding_column="image_embedding")
for _ in reader(batch_size=1 << 18, show_progress=False):
    pass
"""


def main() -> None:
    """Measure, and write the page."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=64)
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name:
        folder = Path(name)
        write(folder, arguments.rows, arguments.dim)
        array, table = folder / "npy/image.npy", folder / "parquet/a.parquet"
        memory = {"npy": 0, "parquet": 0}

        def run(kind: str) -> None:
            memory[kind] = max(memory[kind], adopt(folder / kind, folder / "out"))

        seconds = harness.in_turns(
            {
                "copy, fsync and sha256sum": lambda: copy(array, folder / "copy"),
                "adopt, npy": lambda: run("npy"),
                "embedding-reader, parquet": lambda: subprocess.run(
                    [sys.executable, "-c", READ, table.parent], check=True, stderr=subprocess.DEVNULL
                ),
                "adopt, parquet": lambda: run("parquet"),
            },
            arguments.rounds,
        )
        base = seconds["copy, fsync and sha256sum"]
        pass_and_write = [one + two for one, two in zip(seconds["embedding-reader, parquet"], base, strict=True)]
        for what, reference in (("npy", base), ("parquet", pass_and_write)):
            mine = seconds[f"adopt, {what}"]
            harness.report(
                results, bench="adopt", what=what, rows=arguments.rows, dim=arguments.dim, seconds=mine,
                reference_seconds=reference, share=harness.paired_ratio(reference, mine), memory_megabytes=memory[what],
            )  # fmt: skip
    if not arguments.no_page:
        body = f"""
`priorkit adopt` of {arguments.rows:,} rows of {arguments.dim} values: one `.npy` file of float16, and a table with
float32 lists. The reference for `.npy` is `cp`, `fsync` and `sha256sum` of the same file. The reference for Parquet is
embedding-reader's own pass over the table, plus that of `.npy`. Memory is the largest resident size of the command.

{
            harness.table(
                results,
                {
                    "what": "{what}",
                    "seconds": "{seconds:.1f}",
                    "reference": "{reference_seconds:.1f}",
                    "speed, relative": "{share:.2f}",
                    "memory, MB": "{memory_megabytes:,}",
                },
            )
        }
"""
        harness.write_page("adopt", "Taking embeddings over", body, results, ("numpy", "pyarrow", "embedding-reader"))


if __name__ == "__main__":
    main()
