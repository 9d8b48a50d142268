"""The training loop, the same in one process and in each of several. Knows nothing of Ray."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch

from ...pipeline.compute.device import require_device
from ...pipeline.contract.manifest import ShardRecord
from ...pipeline.contract.storage import Store
from ...pipeline.errors import PriorkitError
from ...pipeline.read.batches import BatchStream, TrainBatch
from ...pipeline.read.dataset import EmbeddingDataset
from ..model.folder import TrainState
from .job import TrainJob
from .optim import learning_rate
from .output import TrainingFolder
from .ranks import Ranks
from .start import load_start
from .step import Learner, NotFinite
from .text import text_columns, text_source
from .trackers import open_trackers
from .validation import Validation

_NORMALISER_ROWS = 100_000
"""Rows that the normaliser's statistics are taken from at most."""


class Watch(Protocol):
    """Who looks on from outside: is told of progress, and may ask for a stop."""

    def report(self, step: int, note: str) -> None:
        """So many steps are done."""

    def should_stop(self) -> bool:
        """Asked before every step; True stops all ranks with a checkpoint."""

    def before_writing(self) -> None:
        """Raises if another process has taken over the work of this one."""


@dataclass(frozen=True)
class Outcome:
    """How a run of the loop ended."""

    first_step: int
    """Steps that were done before."""
    step: int
    """Steps that are done now."""
    stopped: bool
    """Whether it was asked to stop."""
    record: ShardRecord | None
    """Of the prior, if it is trained to the end; on the first rank only."""
    notes: list[str] = field(default_factory=list)
    """What was unusual in the embeddings that this rank read, a sentence each."""


def run_loop(job: TrainJob, dataset: EmbeddingDataset, watch: Watch) -> Outcome:
    """Train to the end, or to the job's limit, from the newest checkpoint on.

    Where a process group is there, every rank calls it. The first rank alone needs the prior's folder: it reads the
    checkpoint for all, and writes log, checkpoints and prior.

    Raises:
        PriorkitError: a loss is not finite; names the rows by their keys.
    """
    settings = job.settings
    require_device(settings.device)
    torch.set_num_threads(settings.threads)
    ranks = Ranks.found(torch.device(settings.device))
    text_of, columns = text_source(job.config, settings), text_columns(job.config, settings)
    folder = None
    if ranks.is_first:
        folder = TrainingFolder(Store(job.prior), job.fingerprint, settings.keep_checkpoints, job.best_since)
    learner = Learner(job.config, settings, ranks)
    first = step = _begin(job, dataset, learner, folder, ranks)
    validation = Validation(dataset, job.config, settings, ranks, text_of, columns)
    stream = BatchStream(
        dataset, "train", batch_size=settings.batch_size, seed=settings.seed, columns=columns, rank=ranks.rank,
        ranks=ranks.size,
    )  # fmt: skip
    batches = cast("Generator[TrainBatch]", stream.batches(step))
    pace = Pace(settings.noise_draws)
    keeper = None if folder is None else Keeper(job, folder, learner, watch, step)
    stop = bool(ranks.sum(torch.tensor([float(watch.should_stop())], dtype=torch.float64)).item())
    try:
        while step < job.last_step and not stop:
            watch.report(step, pace.note)
            batch = next(batches)
            done = learner.step(step, batch, text_of, watch.should_stop)
            step, stop = step + 1, done.stop
            pace.add(batch.global_rows)
            is_end = step == settings.steps
            trained, validated = {}, {}
            if step % settings.log_every == 0 or is_end:
                pace.turn(done.loss)
                trained = {"loss": done.loss, "grad_norm": done.grad_norm}
            if step % settings.validate_every == 0 or is_end:
                validated = validation(learner, step)
            if keeper is not None:
                keeper.note(step, trained, validated, pace)
                if step % settings.checkpoint_every == 0 or step == job.last_step or stop or keeper.is_time:
                    keeper.save(step)
        watch.report(step, pace.note)
        record = None
        if keeper is not None and step == settings.steps:
            record = keeper.publish(len(dataset.rows("train")))
    except NotFinite as error:
        raise _named(error, dataset) from error
    finally:
        batches.close()
        if keeper is not None:
            keeper.close()
    return Outcome(first, step, stop and step < job.last_step, record, dataset.notes)


class Keeper:
    """Writes what is to be kept of a training, on the first rank."""

    def __init__(self, job: TrainJob, folder: TrainingFolder, learner: Learner, watch: Watch, step: int) -> None:
        self._job, self._folder, self._learner, self._watch = job, folder, learner, watch
        self._saved = time.monotonic()
        self._trackers = open_trackers(job.settings, Store(job.prior), job.fingerprint, job.identity, step)

    @property
    def is_time(self) -> bool:
        """Whether the last checkpoint is old."""
        return time.monotonic() - self._saved > 60 * self._job.settings.checkpoint_minutes

    def note(self, step: int, trained: dict[str, float], validated: dict[str, float], pace: Pace) -> None:
        """Metrics of a step, where there are any, to the log and the trackers; and weights that are the best so far."""
        rate = learning_rate(self._job.settings.optimiser, step - 1, self._job.settings.steps)
        for values in (trained, validated):
            if values:
                self._folder.note(step, values, rate)
        if validated:
            self._watch.before_writing()
            self._folder.keep_if_best(self._learner.average, step, validated["validation_loss"])
        if trained or validated:
            for tracker in self._trackers:
                tracker.log(step, {**trained, **validated, "learning_rate": rate, **pace.rates})

    def save(self, step: int) -> None:
        """A checkpoint."""
        self._watch.before_writing()
        self._folder.save(self._learner.state(step))
        self._saved = time.monotonic()

    def publish(self, rows: int) -> ShardRecord:
        """The trained prior, of so many training rows."""
        self._watch.before_writing()
        job, learner = self._job, self._learner
        return self._folder.publish(job.config, learner.average, learner.normaliser, input=job.record_input, rows=rows)

    def close(self) -> None:
        """End the trackers."""
        for tracker in self._trackers:
            tracker.close()


class Pace:
    """How fast it goes.

    Args:
        draws: noise draws for each sample.
    """

    def __init__(self, draws: int) -> None:
        self._draws = draws
        self._rows, self._since = 0, time.monotonic()
        self.rates: dict[str, float] = {}
        """Between the last turns, by name."""
        self.note = ""
        """For the progress bar."""

    def add(self, rows: int) -> None:
        """So many rows were trained on."""
        self._rows += rows

    def turn(self, loss: float) -> None:
        """Take the rates since the last turn."""
        now = time.monotonic()
        rate = self._rows / max(now - self._since, 1e-9)
        self._rows, self._since = 0, now
        self.rates = {"samples_per_second": rate, "draws_per_second": rate * self._draws}
        self.note = f"loss {loss:.4f}, {rate:,.0f} samples/s, {rate * self._draws:,.0f} draws/s"


def _begin(
    job: TrainJob, dataset: EmbeddingDataset, learner: Learner, folder: TrainingFolder | None, ranks: Ranks
) -> int:
    """Put what the first rank has read, or made anew, into the learners of all; returns the steps that are done."""
    state = None
    if folder is not None:
        state = folder.restore()
        if state is None:
            _make_anew(job, dataset, learner)
            state = learner.state(0)
    step, tensors = ranks.broadcast(None if state is None else state.step, {} if state is None else state.tensors())
    learner.restore(TrainState.from_tensors(step, tensors))
    return step


def _make_anew(job: TrainJob, dataset: EmbeddingDataset, learner: Learner) -> None:
    """Weights and statistics to start with: of another prior, or random ones and those of training rows."""
    settings = job.settings
    if settings.init_from is not None:
        start = load_start(settings.init_from)
        for network in (learner.network, learner.average):
            network.load_state_dict(start.network.state_dict())
        learner.normaliser.load_state_dict(start.normaliser.state_dict())
    elif settings.diffusion.normaliser != "sqrt_dim":
        rows = dataset.epoch_order("train", settings.seed, 0)[:_NORMALISER_ROWS]
        image_embed = dataset.embeds("img_emb", rows)
        learner.normaliser.fit(torch.from_numpy(image_embed).to(settings.device))


def _named(error: NotFinite, dataset: EmbeddingDataset) -> PriorkitError:
    return PriorkitError(
        f"{error} ({dataset.describe_rows(error.rows)}); `priorkit inspect` finds unsound embeddings; else lower "
        "train.optimiser.learning_rate"
    )
