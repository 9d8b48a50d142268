"""Small folders of embeddings, in the layout of clip-retrieval, for tests of evaluation and reports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from priorkit.pipeline.read.settings import ReadSettings

DIM = 4
"""Size of embeddings."""
SPLITS = ReadSettings(validation_fraction=0.2, test_fraction=0.4)
"""Splits with rows in each, from 60 rows on."""


def unit(values: np.ndarray) -> np.ndarray:
    return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True))


def write_embeddings(folder: Path, rows: int = 120, *, captions: int = 1, seed: int = 0, dim: int = DIM) -> Path:
    """Write random embeddings, with `captions` consecutive rows for each image."""
    random = np.random.default_rng(seed)
    text = unit(random.standard_normal((rows, dim)))
    image = unit(text + 0.5 * random.standard_normal((rows, dim)))[np.arange(rows) // captions * captions]
    for name, values in (("img_emb", image), ("text_emb", text)):
        (folder / name).mkdir(parents=True)
        np.save(folder / name / f"{name}_0.npy", values.astype(np.float16))
    (folder / "metadata").mkdir()
    keys = [f"{row:09d}" for row in range(rows)]
    urls = [f"http://example.com/{row // captions}" for row in range(rows)]
    table = pa.table(
        {"image_path": keys, "key": keys, "caption": [f"caption {row}" for row in range(rows)], "url": urls}
    )
    pq.write_table(table, folder / "metadata" / "metadata_0.parquet")
    return folder
