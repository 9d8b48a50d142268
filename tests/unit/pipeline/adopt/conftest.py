"""Small folders of embeddings, in the layouts that other programs write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 20
IMAGE, TEXT = 6, 4
"""Sizes of the embeddings: two spaces, unless a test says otherwise."""


def units(rows: int = ROWS, dim: int = IMAGE, seed: int = 0) -> np.ndarray:
    """Return random unit vectors as float32."""
    values = np.random.default_rng(seed).normal(size=(rows, dim))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def save(path: Path, values: np.ndarray) -> Path:
    """Write an array, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)
    return path


def save_table(path: Path, **columns: object) -> Path:
    """Write a table, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def fixed(values: np.ndarray) -> pa.Array:
    """Return a matrix as an array of fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def clip_retrieval(folder: Path, shards: int = 2, rows: int = ROWS, dim: int = IMAGE, seed: int = 0) -> Path:
    """Write a folder as clip-retrieval does."""
    for shard in range(shards):
        save(folder / f"img_emb/img_emb_{shard}.npy", units(rows, dim, seed + 2 * shard).astype(np.float16))
        save(folder / f"text_emb/text_emb_{shard}.npy", units(rows, dim, seed + 2 * shard + 1).astype(np.float16))
        keys = [f"{seed}{shard}{row:03d}" for row in range(rows)]
        captions = [f"caption {key}" for key in keys]
        save_table(folder / f"metadata/metadata_{shard}.parquet", image_path=keys, caption=captions)
    return folder


def datacomp(folder: Path, rows: int = ROWS) -> Path:
    """Write an archive and its table as DataComp publishes them."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        f"{model}_{kind}": units(rows, dim, seed).astype(np.float16)
        for seed, (model, kind, dim) in enumerate(
            [("b32", "img", 4), ("b32", "txt", 4), ("l14", "img", 6), ("l14", "txt", 6)]
        )
    }
    np.savez(folder / "003497f3.npz", **arrays)
    uids = [f"{row:032x}" for row in range(rows)]
    save_table(
        folder / "003497f3.parquet", uid=uids, url=[f"http://example.com/{uid}" for uid in uids],
        text=[f"text {uid}" for uid in uids], sha256=uids,
    )  # fmt: skip
    return folder


def hugging_face(folder: Path, rows: int = ROWS) -> Path:
    """Write a table with embeddings in columns: one of fixed-size lists, one of lists."""
    image, text = units(rows, IMAGE, 0), units(rows, IMAGE, 1)
    save_table(
        folder / "train-00000-of-00001.parquet", id=list(range(rows)), caption=[f"c {row}" for row in range(rows)],
        image_embedding=fixed(image), text_embedding=text.tolist(),
    )  # fmt: skip
    return folder
