"""Runs each command's error path many times: exit code, one message, no abort, no traceback, no hang.

Command: python tests/soak/error_paths.py --times 40
         python tests/soak/error_paths.py --times 3 --path csv_column --path train_recipe
"""

from __future__ import annotations

import argparse
import collections
import gzip
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PRIORKIT = str(Path(sys.executable).with_name("priorkit"))
_SECONDS = 20.0
"""Longest time of an error path."""
_GIVE_UP_SECONDS = 90.0
_FAILURE, _USAGE = 1, 2


@dataclass(frozen=True)
class ErrorPath:
    """A command that must fail, in the folder that `make_inputs` fills."""

    arguments: str
    code: int = _FAILURE


PATHS = {
    "csv_column": ErrorPath("download big.csv.gz --images none --url-column address"),
    "csv_quote": ErrorPath("download quote.csv --images none"),
    "csv_late_quote": ErrorPath("download late.csv --images late --set download.min_success_rate=0"),
    "tsv_header": ErrorPath("download header.tsv --images none"),
    "parquet_damaged": ErrorPath("download damaged.parquet --images none"),
    "download_setting": ErrorPath("download list.parquet --set download.imagesize=3"),
    "download_nothing": ErrorPath("download list.parquet --images nothing"),
    "download_limit": ErrorPath("download list.parquet --limit 0", _USAGE),
    "embed_missing": ErrorPath("embed absent --embeddings none --model priorkit:demo"),
    "embed_damaged": ErrorPath("embed images --embeddings embedded --model priorkit:demo --device cpu"),
    "train_recipe": ErrorPath("train absent.yaml"),
    "train_embeddings": ErrorPath("train demo --embeddings embeddings --prior none"),
    "evaluate_missing": ErrorPath("evaluate absent --embeddings embeddings"),
    "sample_missing": ErrorPath("sample absent caption"),
    "sample_usage": ErrorPath("sample absent caption --steps none", _USAGE),
    "report_missing": ErrorPath("report absent"),
    "compare_missing": ErrorPath("compare absent missing"),
    "inspect_missing": ErrorPath("inspect absent"),
    "inspect_damaged": ErrorPath("inspect embeddings"),
    "convert_missing": ErrorPath("convert absent.pth converted"),
    "run_recipe": ErrorPath("run bad.yaml"),
    "run_list": ErrorPath("run demo --set urls=big.csv.gz --set download.url_column=address"),
    "status_recipe": ErrorPath("status bad.yaml"),
    "recipes_name": ErrorPath("recipes validate absent"),
}


def make_inputs(folder: Path) -> None:
    """Lists, images, embeddings and recipes that are wrong, each in one way."""
    lines = [f"http://127.0.0.1:9/{number}.jpg,caption number {number} of the list,3\n" for number in range(200_000)]
    with gzip.open(folder / "big.csv.gz", "wt", compresslevel=1) as file:
        file.write("url,caption,size\n" + "".join(lines))
    (folder / "quote.csv").write_text('url,caption\nhttp://127.0.0.1:9/0.jpg,"never closed\n')
    long = "".join(line.replace("caption", "x" * 60_000) for line in lines[:40])  # the first block of the file is sound
    (folder / "late.csv").write_text(f'url,caption,size\n{long}http://127.0.0.1:9/x.jpg,"x,3\n')
    (folder / "header.tsv").write_text("a bus\thttp://127.0.0.1:9/0.jpg\n" * 3)
    (folder / "damaged.parquet").write_bytes(b"PAR1 and no more")
    table = pa.table({"url": ["http://127.0.0.1:9/0.jpg"], "caption": ["a"]})
    pq.write_table(table, folder / "list.parquet")
    (folder / "images").mkdir()
    with tarfile.open(folder / "images/00000.tar", "w") as tar:
        tar.add(folder / "list.parquet", "000000000.jpg")
    keys = pa.table({"key": ["0", "1"], "caption": ["a", "b"]})
    pq.write_table(keys, folder / "images/00000.parquet")
    for kind in ("img_emb", "text_emb"):
        (folder / "embeddings" / kind).mkdir(parents=True)
        np.save(folder / f"embeddings/{kind}/{kind}_0.npy", np.zeros((3, 8), np.float16))
    (folder / "embeddings/metadata").mkdir()
    pq.write_table(keys, folder / "embeddings/metadata/metadata_0.parquet")
    (folder / "bad.yaml").write_text("train:\n  stepps: 3\n")


def run_path(path: ErrorPath, folder: Path) -> tuple[str, float]:
    """What is wrong with one run, or `ok`, and its seconds."""
    start = time.monotonic()
    try:
        done = subprocess.run(
            [PRIORKIT, *path.arguments.split()],
            cwd=folder, env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
            capture_output=True, text=True, timeout=_GIVE_UP_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "never ends", time.monotonic() - start
    seconds = time.monotonic() - start
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.lower().startswith("error: ")]
    if done.returncode != path.code:
        return f"exit code {done.returncode}", seconds
    if "Traceback" in done.stderr or "Fatal" in done.stderr or "terminate called" in done.stderr:
        return "traceback", seconds
    if path.code == _FAILURE and len(errors) != 1:
        return f"{len(errors)} messages", seconds
    if path.code == _USAGE and not lines:
        return "no message", seconds
    return ("ok" if seconds <= _SECONDS else f"over {_SECONDS:.0f} s"), seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=40, help="runs of each path")
    parser.add_argument("--path", action="append", choices=sorted(PATHS), help="only this one; may be repeated")
    chosen = parser.parse_args()
    print("| error path | runs | outcomes | slowest, s |\n|---|---|---|---|")
    all_ok = True
    for name in chosen.path or PATHS:
        with tempfile.TemporaryDirectory() as folder:
            make_inputs(Path(folder))
            outcomes: collections.Counter[str] = collections.Counter()
            slowest = 0.0
            for _ in range(chosen.times):
                outcome, seconds = run_path(PATHS[name], Path(folder))
                outcomes[outcome] += 1
                slowest = max(slowest, seconds)
        all_ok &= set(outcomes) == {"ok"}
        shown = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.most_common())
        print(f"| {name} | {chosen.times} | {shown} | {slowest:.1f} |", flush=True)
    return 0 if all_ok else 1


if __name__ == "__main__":
    sys.exit(main())
