"""One shard of samples -> one embedding shard: what is written, and its commit."""

from __future__ import annotations

import collections
import contextlib
import time
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ..clip.encoder import load_encoder
from ..clip.identity import clip_difference
from ..contract.commit import ShardCommit
from ..contract.known_rows import join_rows
from ..contract.manifest import READ_BLOCK_ROWS, Manifest, ShardRecord
from ..contract.samples import Place
from ..contract.storage import Store
from ..contract.vectors.spool import RowSpool
from ..errors import InputError
from ..urls.columns import EMBED_COLUMNS
from .engines import EmbedTask, Engine, Failure, NativeEngine, Window
from .input_marks import record_inputs
from .settings import EmbedSettings

_FAILURES = pa.schema([("key", pa.string()), ("error", pa.string())])
_LEFT_BEHIND = ("status", "error_message", "caption", *EMBED_COLUMNS)
"""Columns of the input that every embedded row has the same, or that are written in their own place."""


def failures_name(shard: str) -> str:
    """Name of the table of a shard's samples that gave no row."""
    return f"failures/failures_{shard}.parquet"


@dataclass
class _Embedded:
    """What has come of a shard so far, beside the arrays."""

    keys: list[str] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    """Token states of each row."""
    norms: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """Norms before normalisation, by the name of the array."""
    failures: list[Failure] = field(default_factory=list)


class EmbedWorker:
    """Embeds one shard after the other in this process, with one model. Use as a context, or end the process."""

    def __init__(self, source: Store, store: Store, settings: EmbedSettings, manifest: Manifest) -> None:
        self._source, self._store, self._settings = source, store, settings
        self._settings_fingerprint = manifest.settings_fingerprint
        encoder = load_encoder(settings)
        if clip_difference(manifest.about["clip"], encoder.identity, strict=True):
            raise InputError(f"the CLIP {settings.clip.model} has other weights on this worker than on the driver")
        self._identity = encoder.identity
        self._engine: Engine
        if settings.engine == "clip-retrieval":
            from .clip_retrieval import ClipRetrievalEngine

            self._engine = ClipRetrievalEngine(source, settings)
        else:
            self._engine = NativeEngine(source, settings, encoder)

    def __enter__(self) -> EmbedWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(self._engine, NativeEngine):
            self._engine.close()

    def __call__(self, task: EmbedTask, following: EmbedTask | None = None) -> ShardRecord:
        start = time.time()
        done = _Embedded()
        commit = ShardCommit(self._store, task.name, settings=self._settings_fingerprint)
        with contextlib.ExitStack() as stack:
            spools = {name: stack.enter_context(contextlib.closing(spool)) for name, spool in self._spools().items()}
            for part in self._engine.windows(task, following):
                if isinstance(part, Failure):
                    done.failures.append(part)
                else:
                    _keep(part, done, spools)
            self._write(task, done, spools, commit)
        input = record_inputs(commit, task.name, self._source, task.shard, task.limit)
        rows, seconds = len(done.keys), time.time() - start
        rate = {"rows": rows, "seconds": seconds, "samples_per_second": rows / seconds if seconds else None}
        commit.write_log(f"stats/stats_{task.name}.json", rate)
        reasons = collections.Counter(failure.reason.partition(":")[0] for failure in done.failures)
        return commit.commit(
            rows=rows, input=input, counts={"success": rows, **reasons}, threads=self._settings.threads
        )

    def _spools(self) -> dict[str, RowSpool]:
        """Where the rows of each stored array wait."""
        embed, settings = (self._identity["embed_dim"],), self._settings
        shapes = {"img_emb": embed} if settings.image else {}
        if settings.text:
            shapes["text_emb"] = embed
        if settings.token_states:
            shapes["token_states"] = (self._identity["token_width"],)
        return {name: RowSpool(np.float16, shape) for name, shape in shapes.items()}

    def _write(self, task: EmbedTask, done: _Embedded, spools: dict[str, RowSpool], commit: ShardCommit) -> None:
        for name, spool in spools.items():
            with commit.create(f"{name}/{name}_{task.name}.npy") as file:
                spool.save(file)  # type: ignore[arg-type]
        if self._settings.token_states:
            with commit.create(f"token_states/offsets_{task.name}.npy") as file:
                np.save(file, np.cumsum([0, *done.lengths], dtype=np.int64))
        with commit.create(f"metadata/metadata_{task.name}.parquet") as file:
            pq.write_table(self._metadata(task, done), file, row_group_size=READ_BLOCK_ROWS)
        failures = [{"key": failure.key, "error": failure.reason} for failure in done.failures]
        with commit.create(failures_name(task.name)) as file:
            pq.write_table(pa.Table.from_pylist(failures, _FAILURES), file)

    def _metadata(self, task: EmbedTask, done: _Embedded) -> pa.Table:
        """clip-retrieval's columns, then the key and whatever the input knows of the row, joined by key."""
        columns = {"image_path": pa.array(done.keys, pa.string()), "caption": pa.array(done.captions, pa.string())}
        norms = {
            name: np.concatenate([np.empty(0, np.float32), *done.norms.get(array, [])])
            for name, array, wanted in (
                ("image_norm", "img_emb", self._settings.image), ("text_norm", "text_emb", self._settings.text)
            )
            if wanted and (array in done.norms or not done.keys)
        }  # fmt: skip
        tables = task.shard.tables(self._source)
        if all(table is None for table in tables):
            return pa.table({**columns, "key": columns["image_path"], **norms})
        embedded = list(zip(done.places, done.keys, strict=True))
        samples = [*embedded, *((failure.place, failure.key) for failure in done.failures)]
        rows = join_rows(tables, samples, embedded, task.shard.title)
        carried = {name: rows.column(name) for name in rows.schema.names if name not in _LEFT_BEHIND}
        ordered = [*columns, *(name for name in carried if name not in columns)]
        return pa.table({**carried, **columns, "key": columns["image_path"], **norms}).select([*ordered, *norms])


def _keep(window: Window, done: _Embedded, spools: dict[str, RowSpool]) -> None:
    """Put a window where rows wait."""
    done.keys += window.keys
    done.places += window.places
    done.captions += window.captions
    text_embed = None if window.text is None else window.text.text_embed
    for name, embeds in (("img_emb", window.image_embed), ("text_emb", text_embed)):
        if embeds is None:
            continue
        norm = embeds.float().norm(dim=-1, keepdim=True)
        sound = torch.isfinite(norm[:, 0]) & (norm[:, 0] > 0)
        if not sound.all():
            raise InputError(
                f"the CLIP gives NaN, infinity or only zeros for sample "
                f"{window.keys[int(torch.nonzero(~sound)[0])]}; try embed.dtype=float32 or other weights"
            )
        if window.normalised:
            spools[name].append(embeds.half().numpy())
        else:
            spools[name].append((embeds / norm).half().numpy())
            done.norms.setdefault(name, []).append(norm[:, 0].numpy())
    if window.text is not None and window.text.token_states is not None:
        spools["token_states"].append(window.text.token_states.half().numpy())
        done.lengths += window.text.lengths
