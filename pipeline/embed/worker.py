"""Embed stage worker: embeds one shard at a time, writes the shard's files, and then records the shard as complete."""

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
from ..urls.reserved import EMBED_COLUMNS
from .engines import EmbedTask, Engine, Failure, NativeEngine, Window
from .input_marks import record_inputs
from .settings import EmbedSettings

_FAILURES = pa.schema([("key", pa.string()), ("error", pa.string())])
_LEFT_BEHIND = ("status", "error_message", "caption", *EMBED_COLUMNS)
"""Input columns that are not copied to the metadata table of an embedding shard.

The status and error message are the same in all embedded rows. The other columns are written separately.
"""


def failures_name(shard: str) -> str:
    """Return the path of the Parquet table that lists a shard's failed samples, relative to the embeddings folder."""
    return f"failures/failures_{shard}.parquet"


@dataclass
class _Embedded:
    """Rows and failures collected while a shard is embedded.

    The embeddings themselves are appended to temporary files (`RowSpool`).
    """

    keys: list[str] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    """Number of token states (text encoder outputs) of each row."""
    norms: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """Norms that the embeddings had before normalisation, keyed by array name."""
    failures: list[Failure] = field(default_factory=list)


class EmbedWorker:
    """Callable that embeds one shard per call, writes the shard's files, and returns its record.

    All calls use the same CLIP model, which is loaded in this process. Use the worker as a context manager, so that the
    engine's threads stop on exit. Otherwise, the threads run until the process ends.

    Args:
        source: input folder.
        store: embeddings folder.
        settings: embed settings, with `device` and `threads` resolved to actual values.
        manifest: manifest of the embeddings folder, including the identity of the CLIP model.

    Raises:
        InputError: the CLIP model on this worker has different weights than the CLIP model on the driver.
    """

    def __init__(self, source: Store, store: Store, settings: EmbedSettings, manifest: Manifest) -> None:
        self._source, self._store, self._settings = source, store, settings
        self._settings_fingerprint = manifest.settings_fingerprint
        encoder = load_encoder(settings.encoder_settings())
        if clip_difference(manifest.about["clip"], encoder.identity, strict=True):
            raise InputError(f"the CLIP {settings.clip.model} has other weights on this worker than on the driver")
        self._identity = encoder.identity
        self._engine: Engine
        if settings.engine == "clip-retrieval":
            from .clip_retrieval import ClipRetrievalEngine

            self._engine = ClipRetrievalEngine(source, settings, encoder)
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
                    _add_window(part, done, spools)
            self._write(task, done, spools, commit)
        input = record_inputs(commit, task.name, self._source, task.shard, task.limit)
        rows, seconds = len(done.keys), time.time() - start
        rate = {"rows": rows, "seconds": seconds, "samples_per_second": rows / seconds if seconds else None}
        commit.write_log(f"stats/stats_{task.name}.json", rate)
        reasons = collections.Counter(failure.reason.partition(":")[0] for failure in done.failures)
        # a sample with several captions has several rows
        samples = {place.position for place in [*done.places, *(failure.place for failure in done.failures)]}
        return commit.commit(
            rows=rows,
            input=input,
            counts={"success": rows, **reasons},
            threads=self._settings.threads,
            samples=len(samples),
        )

    def _spools(self) -> dict[str, RowSpool]:
        """Create an empty temporary file (`RowSpool`) for each array that the shard stores, keyed by array name."""
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
        """Build the metadata table of a shard, with one row for each embedded sample.

        The table has the columns that clip-retrieval writes, the columns of the input tables, the sample keys, and the
        norms that the embeddings had before normalisation.
        """
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


def _add_window(window: Window, done: _Embedded, spools: dict[str, RowSpool]) -> None:
    """Append the embeddings of a window to `spools`, and the keys, positions and captions of its rows to `done`.

    The embeddings are stored as float16. They are normalised first, and their original norms are added to `done`,
    unless the engine has already normalised them.

    Args:
        window: rows that the engine has embedded.
        done: rows of the shard that were collected so far.
        spools: temporary file for each array of the shard, keyed by array name.

    Raises:
        InputError: an embedding is zero, or contains NaN or infinity.
    """
    done.keys += window.keys
    done.places += window.places
    done.captions += window.captions
    text_embed = None if window.text is None else window.text.text_embed
    for name, embeds in (("img_emb", window.image_embed), ("text_emb", text_embed)):
        if embeds is None:
            continue
        norm = embeds.float().norm(dim=-1, keepdim=True)
        is_valid = torch.isfinite(norm[:, 0]) & (norm[:, 0] > 0)
        if not is_valid.all():
            raise InputError(
                f"the CLIP gives NaN, infinity or only zeros for sample "
                f"{window.keys[int(torch.nonzero(~is_valid)[0])]}; try embed.dtype=float32 or other weights"
            )
        if window.normalised:
            spools[name].append(embeds.half().numpy())
        else:
            spools[name].append((embeds / norm).half().numpy())
            done.norms.setdefault(name, []).append(norm[:, 0].numpy())
    if window.text is not None and window.text.token_states is not None:
        spools["token_states"].append(window.text.token_states.half().numpy())
        done.lengths += window.text.lengths
