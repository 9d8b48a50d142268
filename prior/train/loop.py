"""The training loop, in one process or on several ranks.

In each step, a rank reads its rows of the batch and computes gradients. The gradients are summed over all ranks, and
every rank updates its weights. Logging, validation and checkpoints follow at configured intervals. The loop does not
use Ray: `on_ray.py` runs the loop in each Ray worker.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import cast

import torch

from ...pipeline.compute.device import require_device
from ...pipeline.contract.storage import Store
from ...pipeline.read.batches import BatchStream, TrainBatch
from ...pipeline.read.dataset import EmbeddingDataset
from ..model.folder import TrainState
from .job import TrainJob
from .output import Recorder, TrainingFolder
from .progress import Outcome, Throughput, Watch
from .ranks import Ranks
from .start import image_norm_statistics, initialise
from .step import Learner, NotFinite
from .text import text_columns, text_source
from .validation import Validation


def run_loop(job: TrainJob, dataset: EmbeddingDataset, watch: Watch) -> Outcome:
    """Run the training loop, starting from the newest checkpoint, or from the initial weights if there is none.

    The loop ends after the job's last step, when a stop is requested, or when the validation loss has not fallen for
    `patience` validation runs, whichever comes first. In a torch.distributed
    process group, every rank must call this function. Only the first rank accesses the prior folder: it sends the
    checkpoint to all other ranks, and writes the log, the checkpoints and the prior.

    Args:
        watch: observer that receives progress and can request a stop.

    Raises:
        PriorkitError: a loss or gradient is not finite. The message lists the keys of some affected rows.
    """
    settings = job.settings
    require_device(settings.device)
    torch.set_num_threads(settings.threads)
    ranks = Ranks.current(torch.device(settings.device))
    encode_text, columns = text_source(job.config, settings), text_columns(job.config, settings)
    folder = None
    if ranks.is_first:
        folder = TrainingFolder(Store(job.prior), job.fingerprint, settings.keep_checkpoints, job.best_since)
    learner = Learner(job.config, settings, ranks, job.empty)
    first_step = step = _load(learner, job, dataset, folder, ranks)
    validation = Validation(dataset, job.config, settings, ranks, encode_text, columns)
    stream = BatchStream(
        dataset, "train", batch_size=settings.batch_size, seed=settings.seed, columns=columns, rank=ranks.rank,
        ranks=ranks.size,
    )  # fmt: skip
    batches = cast("Generator[TrainBatch]", stream.batches(step))
    throughput = Throughput(settings.noise_draws)
    recorder = None if folder is None else Recorder(job, folder, watch, step, ranks.size)
    record = None
    notes: list[str] = []
    stop = ranks.any(watch.should_stop())
    ended = _ends_early(recorder, job, ranks)
    try:
        while step < job.last_step and not stop and not ended:
            watch.report(step, throughput.note)
            batch = next(batches)  # B rows, which are this rank's share of the global batch
            losses = learner.backward(step, batch, encode_text(batch))  # (B,)
            loss, stop = learner.reduce(step, batch, losses, watch.should_stop())
            grad_norm = learner.update(step, batch)
            step += 1

            throughput.add(batch.global_rows)
            is_last = step == settings.steps
            trained: dict[str, float] = {}
            validated: dict[str, float] = {}
            if step % settings.log_every == 0 or is_last:
                trained = {"loss": loss, "grad_norm": grad_norm}
                throughput.measure(loss)
            if step % settings.validate_every == 0 or is_last:
                validated = validation(learner, step)
            if recorder is not None and validated:
                recorder.save_if_best(learner.average, step, validated["validation_loss"])
            ended = bool(validated) and _ends_early(recorder, job, ranks)
            if recorder is not None:
                recorder.log(step, trained, validated, throughput.rates)
                if stop or ended or step == job.last_step or recorder.is_checkpoint_due(step):
                    recorder.save(learner.checkpoint(step))

        watch.report(step, throughput.note)
        if recorder is not None and (ended or step == settings.steps):
            rows, image_norm = dataset.rows("train"), image_norm_statistics(dataset, notes)
            record = recorder.publish(learner.average, learner.normaliser, image_norm=image_norm, rows=len(rows))
    except NotFinite as error:
        raise error.with_keys(dataset) from error
    finally:
        batches.close()
        if recorder is not None:
            recorder.close()
    if recorder is not None and ended and step < settings.steps:
        notes.append(recorder.early_stop_note(step))
    return Outcome(first_step, step, stop and not ended and step < job.last_step, record, [*dataset.notes, *notes])


def _ends_early(recorder: Recorder | None, job: TrainJob, ranks: Ranks) -> bool:
    """Return True on all ranks if training must stop early because of `patience`.

    Only the first rank has the log of earlier validation runs, so every rank must call this function.
    """
    if job.settings.patience is None:
        return False
    return ranks.any(recorder is not None and recorder.is_out_of_patience())


def _load(
    learner: Learner, job: TrainJob, dataset: EmbeddingDataset, folder: TrainingFolder | None, ranks: Ranks
) -> int:
    """Load the newest checkpoint into `learner` on every rank. Return the number of steps completed in this checkpoint.

    If there is no checkpoint, set the initial weights instead and return 0.

    Args:
        folder: prior folder on the first rank, which sends the checkpoint to all other ranks; None on the others.
    """
    state = None
    if folder is not None:
        state = folder.restore()
        if state is None or job.settings.lora is not None:  # checkpoints of adapters lack the initial prior's weights
            initialise(learner, job.settings, dataset)
            if state is not None:
                learner.restore(state)
            state = learner.state(0 if state is None else state.step)
    step, tensors = ranks.broadcast(None if state is None else state.step, {} if state is None else state.tensors())
    learner.restore(TrainState.from_tensors(step, tensors))
    return step
