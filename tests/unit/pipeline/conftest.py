"""Fixtures that write small folders of embeddings."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.contract.commit import ShardCommit, open_stage
from priorkit.pipeline.contract.manifest import Manifest
from priorkit.pipeline.contract.storage import Store

DIM, WIDTH = 8, 4
ABOUT = {"clip": {"embed_dim": DIM, "token_width": WIDTH}, "clip_settings": {"model": "none"}}


def vector(name: str, kind: str) -> np.ndarray:
    """Return a unit vector that depends only on the name."""
    values = np.random.default_rng([ord(c) for c in name + kind]).normal(size=DIM)
    return (values / np.linalg.norm(values)).astype(np.float16)


def states(name: str) -> np.ndarray:
    """Return one to five token states that depend only on the name."""
    random = np.random.default_rng([ord(c) for c in name])
    return random.normal(size=(1 + len(name) % 5, WIDTH)).astype(np.float16)


WriteEmbeddings = Callable[..., Path]


@pytest.fixture
def write_embeddings(tmp_path: Path) -> WriteEmbeddings:
    """Write shards of rows; the name of each row determines its vectors."""

    def write(
        shards: list[list[str]],
        folder: str = "emb",
        columns: dict[str, Callable[[str], Any]] | None = None,
        norms: dict[str, Callable[[str], float]] | None = None,
        about: dict[str, Any] = ABOUT,
    ) -> Path:
        columns = {"sha256": lambda name: f"hash of {name}"} if columns is None else columns
        store = Store(str(tmp_path / folder))
        with open_stage(store, Manifest("embed", {}, {}, dict(about))) as held:
            inputs = {f"{number:04d}": repr(names) for number, names in enumerate(shards)}
            for shard in held.pending(inputs):
                names = shards[int(shard)]
                commit = ShardCommit(store, shard, input=inputs[shard], settings=held.manifest.settings_fingerprint)
                for kind in ("img", "text"):
                    rows = np.array([vector(name, kind) for name in names]).reshape(len(names), DIM).astype(np.float16)
                    with commit.create(f"{kind}_emb/{kind}_emb_{shard}.npy") as file:
                        np.save(file, rows)
                flat = [states(name) for name in names]
                with commit.create(f"token_states/token_states_{shard}.npy") as file:
                    np.save(file, np.concatenate([np.empty((0, WIDTH), np.float16), *flat]))
                with commit.create(f"token_states/offsets_{shard}.npy") as file:
                    np.save(file, np.cumsum([0, *(len(one) for one in flat)], dtype=np.int64))
                table = {"caption": pa.array(names, pa.string()), "key": pa.array(names, pa.string())}
                table |= {name: pa.array([make(row) for row in names], pa.string()) for name, make in columns.items()}
                for name, norm in (norms or {}).items():
                    table[name] = pa.array([norm(row) for row in names], pa.float32())
                with commit.create(f"metadata/metadata_{shard}.parquet") as file:
                    pq.write_table(pa.table(table), file)
                held.add(commit.commit(rows=len(names)))
            held.finish()
        return tmp_path / folder

    return write


@pytest.fixture
def replace_array() -> Callable[[Path, str, np.ndarray], None]:
    """Replace an array of a folder and update its record, like a faulty program."""

    def replace(folder: Path, name: str, values: np.ndarray) -> None:
        import hashlib

        store = Store(str(folder))
        buffer = io.BytesIO()
        np.save(buffer, values)
        (folder / name).write_bytes(buffer.getvalue())
        manifest = store.read_json("manifest.json")
        shard = name.rpartition("_")[2].removesuffix(".npy")
        manifest["shards"][shard]["files"][name] = {
            "bytes": len(buffer.getvalue()), "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()
        }  # fmt: skip
        store.write_json("manifest.json", manifest)

    return replace


@pytest.fixture
def vector_of() -> Callable[[str, str], np.ndarray]:
    return vector


@pytest.fixture
def states_of() -> Callable[[str], np.ndarray]:
    return states
