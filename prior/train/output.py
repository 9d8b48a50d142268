"""Files that training writes to the prior folder: log, checkpoints, best weights, and the finished prior."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import Any

from ...pipeline.contract.commit import ShardCommit
from ...pipeline.contract.empty_inputs import EmptyInputs
from ...pipeline.contract.manifest import ShardRecord
from ...pipeline.contract.storage import Store
from ...pipeline.errors import InputError
from ...pipeline.json_text import parse_json
from ..interchange.adapter_file import ADAPTER_NAME, write_adapters
from ..model.config import NormStatistics, PriorConfig
from ..model.folder import TrainState, clear_states, load_state, save_best, save_prior, save_state
from ..model.train_manifest import RECORD
from ..network.interface import Network
from ..network.lora import fold_adapters, network_adapters
from ..objective.normaliser import EmbeddingNormaliser
from .job import TrainJob
from .optim import learning_rate
from .progress import Watch
from .trackers import open_trackers

LOG_NAME = "metrics.jsonl"
STATS_NAME = "stats/stats_prior.json"
"""Name of the file that records how long the steps of the latest process took. The content differs between identical
runs."""


def read_log(store: Store) -> list[dict[str, Any]]:
    """Read the log of a training run: for each logged step, a dictionary with the key `step` and the metrics by name.

    Args:
        store: prior folder.

    Raises:
        FileNotFoundError: the file is missing.
        InputError: the file is damaged.
    """
    with store.open(LOG_NAME) as file:
        content = file.read()
    try:
        lines = [parse_json(line) for line in content.splitlines()]
        for line in lines:
            for name, value in line.items():
                if not isinstance(value, int if name == "step" else (int, float)):
                    raise ValueError(f"{name} is not a number")
            if "step" not in line:
                raise ValueError("a line has no step")
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"{store.url}/{LOG_NAME} is damaged ({error}); restore it, or train again with --overwrite"
        ) from error
    return lines


def read_seconds_per_step(store: Store, fingerprint: str) -> float | None:
    """Return the measured time of a training step, in seconds, multiplied by the number of workers.

    Return None if no checkpoint of this training run has recorded it.

    Args:
        store: prior folder.
        fingerprint: fingerprint of the training run; see `TrainJob.fingerprint`.
    """
    try:
        stats = store.read_json(STATS_NAME)
        is_current = stats["settings"] == fingerprint
        return float(stats["seconds"] * stats["workers"] / stats["steps"]) if is_current else None
    except (OSError, InputError, KeyError, TypeError, ZeroDivisionError):  # only an estimate depends on it
        return None


class TrainingFolder:
    """Files of one training run in the prior folder: log, checkpoints, best weights and finished prior.

    Only the first rank creates an instance, which reads and writes these files.

    Args:
        store: prior folder.
        fingerprint: fingerprint of the settings and embeddings. Checkpoints with a different fingerprint are ignored.
        keep: number of most recent checkpoints to keep.
        best_since: step at which `validation_rows` last changed, or 0. Validation losses up to this step are ignored in
            the search for the lowest loss, because they were computed on other rows.
    """

    def __init__(self, store: Store, fingerprint: str, keep: int, best_since: int = 0) -> None:
        self._store, self._fingerprint, self._keep, self._best_since = store, fingerprint, keep, best_since
        self._log: list[dict[str, Any]] = []
        self._best, self._best_step = math.inf, 0
        self.since_best = 0
        """Number of validation runs since the one with the lowest loss."""

    def restore(self) -> TrainState | None:
        """Load the newest checkpoint of this training run, and the log up to the step of this checkpoint.

        If the folder contains no checkpoint of this run, or no log, delete all checkpoints and the best weights,
        because they are left over from an older training run.

        Returns:
            The checkpoint, or None if training must start from step 0.

        Raises:
            InputError: the folder contains a damaged checkpoint, and no intact checkpoint of this run; or the log is
                damaged.
        """
        store = self._store
        state = load_state(store, self._fingerprint)
        if state is None or store.size(LOG_NAME) is None:
            # the log is written before the first checkpoint, so a checkpoint without a log is from an older run that
            # an interrupted --overwrite did not fully remove
            clear_states(store)
            return None
        self._log = [line for line in read_log(store) if line["step"] <= state.step]
        # best.safetensors may be newer than the checkpoint; training then repeats these steps and rewrites the file
        for line in self._log:
            if "validation_loss" in line and line["step"] > self._best_since:
                self._is_best(line["step"], line["validation_loss"])
        return state

    def log(self, step: int, values: Mapping[str, float], rate: float) -> None:
        """Add a line to the log in memory. `save` and `publish` write the log to the prior folder.

        Args:
            step: number of completed steps.
            values: metrics by name.
            rate: learning rate of the step.
        """
        self._log.append({"step": step, **values, "learning_rate": rate})

    def save_if_best(self, average: Network, step: int, validation_loss: float) -> None:
        """Write the averaged weights to the folder as the best weights, if this validation loss is the lowest so far.

        Args:
            average: network with the averaged weights.
            step: number of completed steps.
            validation_loss: validation loss of the averaged weights.
        """
        if self._is_best(step, validation_loss):
            save_best(self._store, average, step, validation_loss, self._fingerprint)

    def _is_best(self, step: int, validation_loss: float) -> bool:
        """Return True if a validation loss is the lowest so far, and count the validation runs since the lowest."""
        is_best = validation_loss < self._best
        self.since_best = 0 if is_best else self.since_best + 1
        if is_best:
            self._best, self._best_step = validation_loss, step
        return is_best

    def early_stop_note(self, step: int, steps: int) -> str:
        """Return a note for the user about training that has stopped because of `patience`.

        Args:
            step: number of completed steps.
            steps: number of steps in the settings.
        """
        return (
            f"stopped early after step {step:,} of {steps:,}: the validation loss was lowest at step "
            f"{self._best_step:,} ({self._best:.4f}), and not in the {self.since_best} validation runs since; the "
            "weights of that step are `best`"
        )

    def save_stats(self, steps: int, seconds: float, workers: int) -> None:
        """Write how long the steps of this process took, from which a dry run computes the remaining time."""
        stats = {"settings": self._fingerprint, "steps": steps, "seconds": seconds, "workers": workers}
        self._store.write_json(STATS_NAME, stats)

    def save(self, state: TrainState) -> None:
        """Write the log, then the checkpoint.

        If the process is killed between the two writes, the log contains lines for steps after the newest checkpoint.
        `restore` drops these lines. Writing the checkpoint first could instead leave a gap in the log.
        """
        with self._store.create(LOG_NAME) as file:
            file.write(self._lines())
        save_state(self._store, state, self._fingerprint, self._keep)

    def publish(
        self,
        config: PriorConfig,
        average: Network,
        normaliser: EmbeddingNormaliser,
        *,
        empty: EmptyInputs | None = None,
        input: str,
        rows: int,
    ) -> ShardRecord:
        """Write the finished prior and the log, then a record that marks the prior as complete. Return this record.

        Args:
            average: network with the averaged weights, which become the weights of the prior. Adapters are merged, and
                also written alone.
            empty: outputs of the CLIP model for empty inputs; None if they are unknown.
            input: fingerprint of the inputs of the prior; see `TrainJob.record_input`.
            rows: number of rows in the training split.
        """
        commit = ShardCommit(self._store, RECORD, input=input, settings=self._fingerprint)
        if adapters := network_adapters(average):
            with commit.create(ADAPTER_NAME) as file:
                write_adapters(file, adapters)
            fold_adapters(average)
        save_prior(commit.create, config, average, normaliser, empty)
        with commit.create(LOG_NAME) as file:
            file.write(self._lines())
        return commit.commit(rows=rows)

    def _lines(self) -> bytes:
        return "".join(json.dumps(line) + "\n" for line in self._log).encode()


class Recorder:
    """Writer for the metrics, checkpoints and finished prior of a training run. Only the first rank creates one.

    Metrics go to the log and the trackers. Before it writes checkpoints or weights, the recorder checks that no other
    workers have taken over the training run.

    Args:
        folder: prior folder to write to.
        watch: observer that raises an error if other workers have taken over.
        step: number of training steps completed when this run starts; above 0 if training resumes.
        workers: number of ranks that train together.
    """

    def __init__(self, job: TrainJob, folder: TrainingFolder, watch: Watch, step: int, workers: int = 1) -> None:
        self._job, self._folder, self._watch = job, folder, watch
        self._first_step, self._workers = step, workers
        self._started_at = self._saved_at = time.monotonic()
        self._trackers = open_trackers(job.settings, Store(job.prior), job.fingerprint, job.identity, step)

    def log(
        self, step: int, trained: dict[str, float], validated: dict[str, float], rates: Mapping[str, float]
    ) -> None:
        """Add the metrics of a step to the log and the trackers. If `trained` and `validated` are empty, do nothing.

        Args:
            step: number of completed steps, including this one.
            trained: training metrics by name; may be empty.
            validated: validation metrics by name; may be empty.
            rates: throughput values by metric name, which are sent only to the trackers.
        """
        rate = learning_rate(self._job.settings.optimiser, step - 1, self._job.settings.steps)
        for values in (trained, validated):
            if values:
                self._folder.log(step, values, rate)
        if trained or validated:
            for tracker in self._trackers:
                tracker.log(step, {**trained, **validated, "learning_rate": rate, **rates})

    def save_if_best(self, average: Network, step: int, validation_loss: float) -> None:
        """Write the averaged weights as the best weights, if this validation loss is the lowest so far."""
        self._watch.before_writing()
        self._folder.save_if_best(average, step, validation_loss)

    def is_out_of_patience(self) -> bool:
        """Return True if training must stop early, because the validation loss has not fallen for `patience` runs."""
        patience = self._job.settings.patience
        return patience is not None and self._folder.since_best >= patience

    def early_stop_note(self, step: int) -> str:
        """Return a note for the user about training that has stopped early after `step` steps."""
        return self._folder.early_stop_note(step, self._job.settings.steps)

    def is_checkpoint_due(self, step: int) -> bool:
        """Return True if a checkpoint must be written now.

        This is the case if `step` is a multiple of `checkpoint_every`, or if more than `checkpoint_minutes` have passed
        since the last checkpoint. Before the first checkpoint, the minutes count from the creation of this recorder.

        Args:
            step: number of completed steps.
        """
        settings = self._job.settings
        is_old = time.monotonic() - self._saved_at > 60 * settings.checkpoint_minutes
        return step % settings.checkpoint_every == 0 or is_old

    def save(self, state: TrainState) -> None:
        """Write the log and a checkpoint, and restart the interval of `checkpoint_minutes`."""
        self._watch.before_writing()
        self._folder.save(state)
        self._saved_at = time.monotonic()
        if steps := state.step - self._first_step:
            self._folder.save_stats(steps, self._saved_at - self._started_at, self._workers)

    def publish(
        self, average: Network, normaliser: EmbeddingNormaliser, *, image_norm: NormStatistics | None, rows: int
    ) -> ShardRecord:
        """Write the finished prior and the log, and return the record that marks the prior as complete.

        Args:
            image_norm: norms of the training images' embeddings before normalisation; None if they are unknown.
            rows: number of rows in the training split.
        """
        self._watch.before_writing()
        job = self._job
        config = job.config.model_copy(update={"image_norm": image_norm})
        return self._folder.publish(config, average, normaliser, empty=job.empty, input=job.record_input, rows=rows)

    def close(self) -> None:
        """Close the metric trackers (TensorBoard and W&B)."""
        for tracker in self._trackers:
            tracker.close()
