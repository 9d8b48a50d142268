"""Files of a training in the prior's folder: log, checkpoints, best weights, and finally the prior itself."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import Any

from ...pipeline.contract.commit import ShardCommit
from ...pipeline.contract.manifest import ShardRecord
from ...pipeline.contract.storage import Store
from ..model.config import PriorConfig
from ..model.folder import TrainState, clear_states, load_state, save_best, save_prior, save_state
from ..model.train_manifest import RECORD
from ..network.interface import Network
from ..objective.normaliser import EmbeddingNormaliser
from .job import TrainJob
from .optim import learning_rate
from .progress import Watch
from .trackers import open_trackers

LOG_NAME = "metrics.jsonl"


class TrainingFolder:
    """Folder of a prior during training. Only one process writes to it.

    Args:
        fingerprint: fingerprint of settings and embeddings; checkpoints with another fingerprint are ignored.
        keep: number of newest checkpoints to keep.
        best_since: step after which validation losses are comparable with later ones.
    """

    def __init__(self, store: Store, fingerprint: str, keep: int, best_since: int = 0) -> None:
        self._store, self._fingerprint, self._keep, self._best_since = store, fingerprint, keep, best_since
        self._log: list[dict[str, Any]] = []
        self._best = math.inf

    def restore(self) -> TrainState | None:
        """Read the newest checkpoint and the log up to its step; return None if there is no checkpoint.

        Raises:
            InputError: all checkpoints are damaged.
        """
        store = self._store
        state = load_state(store, self._fingerprint)
        if state is None or store.size(LOG_NAME) is None:
            # the log is written before a checkpoint: without a log, the checkpoint is left over from before an
            # --overwrite that was killed
            clear_states(store)
            return None
        with store.open(LOG_NAME) as file:
            lines = [json.loads(line) for line in file.read().splitlines()]
        self._log = [line for line in lines if line["step"] <= state.step]
        # best.safetensors may be of a later step than the checkpoint; training will write the same file again
        self._best = min(
            (
                line["validation_loss"]
                for line in self._log
                if "validation_loss" in line and line["step"] > self._best_since
            ),
            default=math.inf,
        )
        return state

    def log(self, step: int, values: Mapping[str, float], rate: float) -> None:
        """Add a line to the log, in memory; `save` and `publish` write it."""
        self._log.append({"step": step, **values, "learning_rate": rate})

    def save_if_best(self, average: Network, step: int, validation_loss: float) -> None:
        """Write the averaged weights if their validation loss is the lowest so far."""
        if validation_loss < self._best:
            self._best = validation_loss
            save_best(self._store, average, step, validation_loss, self._fingerprint)

    def save(self, state: TrainState) -> None:
        """Write the log, then the checkpoint.

        In this order a kill in between leaves a log that is too long, which `restore` cuts, and never one with a gap.
        """
        with self._store.create(LOG_NAME) as file:
            file.write(self._lines())
        save_state(self._store, state, self._fingerprint, self._keep)

    def publish(
        self, config: PriorConfig, average: Network, normaliser: EmbeddingNormaliser, *, input: str, rows: int
    ) -> ShardRecord:
        """Write the prior, then the record that makes it valid.

        Args:
            input: fingerprint of the embeddings.
            rows: number of rows in the training split.
        """
        commit = ShardCommit(self._store, RECORD, input=input, settings=self._fingerprint)
        save_prior(commit.create, config, average, normaliser)
        with commit.create(LOG_NAME) as file:
            file.write(self._lines())
        return commit.commit(rows=rows)

    def _lines(self) -> bytes:
        return "".join(json.dumps(line) + "\n" for line in self._log).encode()


class Recorder:
    """Writer of metrics, checkpoints and the prior, on the first rank.

    Args:
        step: steps done before this run.
    """

    def __init__(self, job: TrainJob, folder: TrainingFolder, watch: Watch, step: int) -> None:
        self._job, self._folder, self._watch = job, folder, watch
        self._saved_at = time.monotonic()
        self._trackers = open_trackers(job.settings, Store(job.prior), job.fingerprint, job.identity, step)

    def log(
        self, step: int, trained: dict[str, float], validated: dict[str, float], rates: Mapping[str, float]
    ) -> None:
        """Add the metrics of a step to the log and the trackers; do nothing if there are none.

        Args:
            step: steps done, this one included.
            rates: throughput, for the trackers only.
        """
        rate = learning_rate(self._job.settings.optimiser, step - 1, self._job.settings.steps)
        for values in (trained, validated):
            if values:
                self._folder.log(step, values, rate)
        if trained or validated:
            for tracker in self._trackers:
                tracker.log(step, {**trained, **validated, "learning_rate": rate, **rates})

    def save_if_best(self, average: Network, step: int, validation_loss: float) -> None:
        """Write the averaged weights if their validation loss is the lowest so far."""
        self._watch.before_writing()
        self._folder.save_if_best(average, step, validation_loss)

    def is_checkpoint_due(self, step: int) -> bool:
        """Return whether `checkpoint_every` steps or `checkpoint_minutes` minutes have passed."""
        settings = self._job.settings
        is_old = time.monotonic() - self._saved_at > 60 * settings.checkpoint_minutes
        return step % settings.checkpoint_every == 0 or is_old

    def save(self, state: TrainState) -> None:
        """Write a checkpoint."""
        self._watch.before_writing()
        self._folder.save(state)
        self._saved_at = time.monotonic()

    def publish(self, average: Network, normaliser: EmbeddingNormaliser, *, rows: int) -> ShardRecord:
        """Write the trained prior.

        Args:
            rows: number of rows in the training split.
        """
        self._watch.before_writing()
        job = self._job
        return self._folder.publish(job.config, average, normaliser, input=job.record_input, rows=rows)

    def close(self) -> None:
        """Close the trackers."""
        for tracker in self._trackers:
            tracker.close()
