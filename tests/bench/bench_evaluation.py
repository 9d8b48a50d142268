"""All metrics of a million given predictions of dimension 768: seconds and memory.

Run in the ordinary environment, as `make bench` does. About 12 minutes on 2 cores, and 5 GB of disk.
"""

from __future__ import annotations

import resource
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from priorkit.pipeline.read.settings import ReadSettings
from priorkit.prior.evaluate.folder import read_metrics
from priorkit.prior.evaluate.settings import EvaluateSettings
from priorkit.prior.evaluate.stage import evaluate

DIM, SHARD_ROWS = 768, 50_000


def unit(values: np.ndarray) -> np.ndarray:
    """Of norm 1."""
    return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True))


def write(folder: Path, rows: int) -> None:
    """Embeddings as clip-retrieval writes them, and a prediction for each row."""
    random = np.random.default_rng(0)
    predictions = np.lib.format.open_memmap(folder / "predictions.npy", "w+", np.float16, (rows, DIM))
    for kind in ("img_emb", "text_emb", "metadata"):
        (folder / "embeddings" / kind).mkdir(parents=True)
    for shard, start in enumerate(range(0, rows, SHARD_ROWS)):
        count = min(SHARD_ROWS, rows - start)
        text = unit(random.standard_normal((count, DIM), np.float32))
        image, predicted = (
            unit(text + random.standard_normal((count, DIM), np.float32) / np.float32(np.sqrt(DIM))) for _ in range(2)
        )
        for kind, values in (("img_emb", image), ("text_emb", text)):
            np.save(folder / f"embeddings/{kind}/{kind}_{shard:04d}.npy", values.astype(np.float16))
        names = [f"{start + row:09d}" for row in range(count)]
        table = pa.table({"image_path": names, "caption": names, "url": [f"https://example.com/{n}" for n in names]})
        pq.write_table(table, folder / f"embeddings/metadata/metadata_{shard:04d}.parquet")
        predictions[start : start + count] = predicted


class PeakMemory:
    """The most memory that this process has of its own, without mapped files, whose pages the system may drop."""

    def __init__(self) -> None:
        self.gigabytes = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            self.gigabytes = max(self.gigabytes, int(lines["RssAnon"].split()[0]) / 1e6)
            time.sleep(0.1)


def main() -> None:
    """Run it."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows that are evaluated")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, int(arguments.rows * 1.06))
        settings = EvaluateSettings(max_rows=arguments.rows, baselines=(), threads=arguments.threads)
        memory, start = PeakMemory(), time.perf_counter()
        evaluate(
            str(folder / "predictions.npy"), str(folder / "embeddings"), str(folder / "evaluation"), settings,
            ReadSettings(validation_fraction=0, test_fraction=0.95),
        )  # fmt: skip
        seconds = time.perf_counter() - start
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        found = read_metrics(str(folder / "evaluation"))["splits"]["test"]
        # on the CPU a float64 product of this size is the physical limit of the retrieval
        block = np.random.default_rng(0).standard_normal((128, DIM))
        gallery = np.random.default_rng(1).standard_normal((found["gallery"], DIM))
        product = harness.median(harness.in_turns({"product": lambda: block @ gallery.T}, 9)["product"])
        harness.report(
            results, bench="metrics of given predictions", rows=found["rows"], gallery=found["gallery"],
            distance_rows=found["distance_rows"], seconds=seconds,
            seconds_of_products=product * found["rows"] / 128,
            peak_gigabytes=memory.gigabytes, peak_gigabytes_with_mapped_files=resident,
        )  # fmt: skip
    if not arguments.no_page:
        table = harness.table(
            results,
            {
                "rows": "{rows:,}", "gallery": "{gallery:,}", "rows of distances": "{distance_rows:,}",
                "seconds": "{seconds:.0f}", "of them products with the gallery": "{seconds_of_products:.0f}",
                "peak memory, GB": "{peak_gigabytes:.1f}",
                "with mapped files": "{peak_gigabytes_with_mapped_files:.1f}",
            },
        )  # fmt: skip
        body = f"""
All metrics of one prediction for each row, of dimension {DIM}, in float64, bootstraps and jackknife included. The
products with the gallery, timed by themselves in the same run, are what the retrieval cannot do without. Peak memory is
the process's own; embeddings and predictions are mapped files of 4.9 GB, in part mapped twice, whose pages the system
drops when it needs them.

{table}
"""
        harness.write_page(
            "evaluation", "Evaluating a million predictions", body, results, ("torch", "numpy", "pyarrow")
        )


if __name__ == "__main__":
    main()
