"""Training: the step and the loop, in one process. Knows nothing of Ray."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from ..pipeline.config import ReadSettings
from ..pipeline.device import resolve
from ..pipeline.errors import FolderError, InputError, Interrupted, PriorkitError
from ..pipeline.read import EmbeddingBatch, EmbeddingDataset, Split
from ..pipeline.shards import Manifest, ShardCommit, StageFolder, check_stage, open_stage, read_manifest
from ..pipeline.stage import ProgressCallback, StagePlan, StageResult, free_bytes, no_progress
from ..pipeline.storage import Store
from .checkpoint import (
    TrainState,
    clear_states,
    load_state,
    optimiser_tensors,
    restore_optimiser,
    save_prior,
    save_state,
)
from .config import DiffusionSettings, TrainSettings
from .diffusion import Condition, StepRandomness, diffusion_loss, step_randomness
from .ema import update_ema
from .model import PriorConfig, TrainedOn, build_network, build_normaliser
from .optim import build_optimiser, learning_rate
from .schedule import noise_schedule

STAGE = "train"
RECORD = "prior"
LOG_NAME = "metrics.jsonl"

_VALIDATION_STEP = 2**62
"""Key of the validation noise, which no training step reaches."""
_NORMALISER_ROWS = 100_000
"""Rows that the normaliser's statistics are taken from at most."""
_ASSUMED_FLOPS = {"cpu": 5e10, "cuda": 2e13}
"""For the estimate of `--dry-run`: what 2 cores, and one GPU, sustain in float32."""


def train(
    embeddings: str = "data/embeddings",
    prior: str = "data/prior",
    settings: TrainSettings | None = None,
    read: ReadSettings | None = None,
    *,
    limit: int | None = None,
    overwrite: bool = False,
    progress: ProgressCallback = no_progress,
    should_stop: Callable[[], bool] = lambda: False,
) -> StageResult:
    """Train a prior on a folder of embeddings, or go on from its newest checkpoint.

    Args:
        embeddings: folder that `embed` wrote.
        prior: folder of the trained prior.
        limit: stop after this many steps, with a checkpoint from which the same command without limit goes on.
        overwrite: discard what the folder holds and train anew.
        should_stop: asked before every step; True stops with a checkpoint.

    Raises:
        InputError: the embeddings are missing or unsound, or lack what the settings ask for.
        FolderError: the folder holds other work, or a prior of other settings or other embeddings.
        Interrupted: `should_stop` said so.
    """
    start = time.monotonic()
    settings = resolve(settings or TrainSettings(), "train")
    dataset = EmbeddingDataset(embeddings, read)
    store = Store(prior)
    manifest = train_manifest(dataset, settings)
    if not overwrite:
        _refuse_other_embeddings(store, manifest, dataset)
    with open_stage(store, manifest, overwrite=overwrite) as folder:
        if overwrite:
            clear_states(store)
        done_now = 0
        if folder.pending({RECORD: dataset.content_fingerprint}):
            trainer = Trainer(dataset, folder, settings)
            done_now = trainer.run(limit, progress, should_stop)
        else:
            progress(settings.steps, settings.steps, "")
        folder.finish()
        rows = len(dataset.rows("train"))
        return StageResult(STAGE, store.url, settings.steps, done_now, "steps", rows, time.monotonic() - start)


def plan_train(
    embeddings: str, prior: str, settings: TrainSettings, read: ReadSettings, *, overwrite: bool = False
) -> StagePlan:
    """What `train` would do, without doing it."""
    settings = resolve(settings, "train")
    dataset = EmbeddingDataset(embeddings, read)
    store = Store(prior)
    manifest = train_manifest(dataset, settings)
    found = check_stage(store, manifest, overwrite=overwrite)
    left = settings.steps
    if found is not None and not overwrite:
        state = load_state(store, manifest.settings_fingerprint)
        left = 0 if RECORD in found.shards else settings.steps - (state.step if state else 0)
    weights = sum(value.numel() for value in build_network(_prior_config(dataset, settings)).parameters())
    tokens = 4 + settings.network.max_text_len
    return StagePlan(
        stage=STAGE,
        folder=store.url,
        units=settings.steps,
        pending_units=left,
        unit="steps",
        pending_rows=left * settings.batch_size,
        bytes_needed=weights * 4 * (1 + 4 * settings.keep_checkpoints) if left else 0,
        bytes_free=free_bytes(store),
        seconds=left * settings.batch_size * tokens * weights * 6 / _ASSUMED_FLOPS[settings.device],
    )


def _refuse_other_embeddings(store: Store, planned: Manifest, dataset: EmbeddingDataset) -> None:
    """Say what to do where only the embeddings differ: --overwrite of a whole run would discard them too."""
    found = read_manifest(store)
    if found is None or found.stage != STAGE or found.settings.get("embeddings") == planned.settings["embeddings"]:
        return
    if {**found.settings, "embeddings": None} == {**planned.settings, "embeddings": None}:
        before = found.settings.get("embeddings", {}).get("rows", "unknown")
        raise FolderError(
            f"{store.url} was trained on other embeddings ({before} rows) than {dataset.store.url} holds now "
            f"({dataset.count} rows); train into another folder (folders.prior), "
            "or discard that prior alone with `priorkit train RECIPE --overwrite`"
        )


def train_manifest(dataset: EmbeddingDataset, settings: TrainSettings) -> Manifest:
    """The manifest of resolved settings before any work; other embeddings count as other settings."""
    identity = {
        "train": settings.identity(),
        "read": dataset.settings.identity(),
        "embeddings": {"rows": dataset.count, "sha256": dataset.content_fingerprint},
    }
    return Manifest(STAGE, identity, input={"sha256": dataset.content_fingerprint})


def check_prior_folder(prior: str, settings: TrainSettings, read: ReadSettings, *, overwrite: bool = False) -> None:
    """FolderError if a prior of these settings may not be written to a folder, whatever its embeddings."""
    store = Store(prior)
    found = read_manifest(store)
    embeddings = found.settings.get("embeddings") if found is not None else None
    identity = {"train": resolve(settings, "train").identity(), "read": read.identity(), "embeddings": embeddings}
    check_stage(store, Manifest(STAGE, identity, input={}), overwrite=overwrite)


def _prior_config(dataset: EmbeddingDataset, settings: TrainSettings) -> PriorConfig:
    if settings.network.max_text_len and dataset.token_width is None:
        raise InputError(
            f"train.network.max_text_len={settings.network.max_text_len}, but {dataset.store.url} stores no token "
            "states; embed with token_states: true, or set max_text_len: 0"
        )
    return PriorConfig(
        embed_dim=dataset.embed_dim,
        token_width=dataset.token_width if settings.network.max_text_len else None,
        network=settings.network,
        diffusion=settings.diffusion,
        clip=dataset.clip,
        clip_settings=dataset.clip_settings,
        trained_on=TrainedOn(embeddings=dataset.content_fingerprint, read=dataset.settings.identity()),
    )


class Trainer:
    """Network, averaged network, optimiser and log of one training, and the loop that moves them."""

    def __init__(self, dataset: EmbeddingDataset, folder: StageFolder, settings: TrainSettings) -> None:
        self._dataset = dataset
        self._folder = folder
        self._settings = settings
        self._config = _prior_config(dataset, settings)
        self._device = torch.device(settings.device)
        torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed)
        self._network = build_network(self._config).to(self._device)
        self._normaliser = build_normaliser(self._config).to(self._device)
        self._average = copy.deepcopy(self._network).requires_grad_(False).eval()
        self._optimiser = build_optimiser(self._network, settings.optimiser)
        self._schedule = noise_schedule(settings.diffusion.noise_schedule, settings.diffusion.timesteps)
        self._rows = len(dataset.rows("train"))
        if self._rows == 0:
            raise InputError(f"{dataset.store.url}: no row is left to train on; lower the fractions in `read`")
        self._validation = self._validation_batch()
        self._epoch = -1
        self._log: list[dict[str, Any]] = []
        self._step = self._restore()

    def run(self, limit: int | None, progress: ProgressCallback, should_stop: Callable[[], bool]) -> int:
        """Train to the end, or to `limit` steps; returns the steps done now."""
        settings = self._settings
        first = self._step
        last = settings.steps if limit is None else min(limit, settings.steps)
        note = ""
        while self._step < last:
            progress(self._step, settings.steps, note)
            if should_stop():
                self._save()
                raise Interrupted(
                    f"stopped after step {self._step:,} of {settings.steps:,}; the same command goes on from there"
                )
            loss, grad_norm = self._train_step()
            self._step += 1
            if self._step % settings.log_every == 0 or self._step == settings.steps:
                note = f"loss {loss:.4f}"
                self._write_line(loss=loss, grad_norm=grad_norm)
            if self._validation is not None and (
                self._step % settings.validate_every == 0 or self._step == settings.steps
            ):
                self._write_line(validation_loss=self._validate(*self._validation))
            if self._step % settings.checkpoint_every == 0 or self._step == last:
                self._save()
        progress(self._step, settings.steps, note)
        if self._step == settings.steps:
            self._publish()
        return self._step - first

    def _train_step(self) -> tuple[float, float]:
        """One optimiser step on global batch number `self._step`; returns its mean loss and gradient norm."""
        settings = self._settings
        batch = self._read_batch(self._step)
        random = self._randomness(self._step, len(batch.rows), settings.diffusion)
        self._network.train()
        loss = self._mean(self._losses(self._network, batch, random), batch)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        grad_norm = torch.nn.utils.clip_grad_norm_(self._network.parameters(), settings.optimiser.max_grad_norm)
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate(settings.optimiser, self._step, settings.steps)
        self._optimiser.step()
        update_ema(self._average, self._network, settings.optimiser.ema_decay, self._step)
        return loss.item(), grad_norm.item()

    def _read_batch(self, step: int) -> EmbeddingBatch:
        """A slice of the epoch's permutation: a pure function of selection, seed and step."""
        size = self._settings.batch_size
        epoch, position = divmod(step, math.ceil(self._rows / size))
        if epoch != self._epoch:
            self._order = self._dataset.epoch_order("train", self._settings.seed, epoch)
            self._epoch = epoch
        rows = self._order[position * size : (position + 1) * size]
        return self._dataset.take(rows, self._settings.network.max_text_len)

    def _randomness(self, step: int, batch: int, diffusion: DiffusionSettings) -> StepRandomness:
        return step_randomness(
            seed=self._settings.seed, step=step, batch=batch, embed_dim=self._config.embed_dim, diffusion=diffusion
        )

    def _losses(self, network: Any, batch: EmbeddingBatch, random: StepRandomness) -> torch.Tensor:
        states = None if batch.token_states is None else torch.from_numpy(batch.token_states).to(self._device)
        text_embed = F.normalize(torch.from_numpy(batch.text_embed).float().to(self._device), dim=-1)
        return diffusion_loss(
            network, self._schedule, self._settings.diffusion, self._normaliser,
            torch.from_numpy(batch.image_embed).to(self._device), Condition(text_embed, states),
            random.to(self._device),
        )  # fmt: skip

    def _validation_batch(self) -> tuple[EmbeddingBatch, StepRandomness] | None:
        split: Split = "validation"
        rows = self._dataset.epoch_order(split, self._settings.seed, 0)[: self._settings.validation_rows]
        if len(rows) == 0:
            return None
        batch = self._dataset.take(rows, self._settings.network.max_text_len)
        whole = self._settings.diffusion.model_copy(update={"text_drop": 0.0, "image_drop": 0.0})
        return batch, self._randomness(_VALIDATION_STEP, len(rows), whole)

    def _fit_normaliser(self) -> None:
        """Take the normaliser's statistics from training rows."""
        if self._settings.diffusion.normaliser == "sqrt_dim":
            return
        rows = self._dataset.epoch_order("train", self._settings.seed, 0)[:_NORMALISER_ROWS]
        self._normaliser.fit(torch.from_numpy(self._dataset.take(rows).image_embed).to(self._device))

    @torch.no_grad()
    def _validate(self, batch: EmbeddingBatch, random: StepRandomness) -> float:
        """Mean loss of the averaged weights on the validation rows, with noise that is the same every time."""
        return self._mean(self._losses(self._average, batch, random), batch).item()

    def _mean(self, losses: torch.Tensor, batch: EmbeddingBatch) -> torch.Tensor:
        """Mean over rows of losses `[B]`; PriorkitError names the rows where they are not finite."""
        loss = losses.mean()
        if math.isfinite(loss.item()):
            return loss
        bad = batch.rows[~torch.isfinite(losses).cpu().numpy()]
        keys = self._dataset.metadata(bad[:5], ["key"]).column("key").to_pylist()
        raise PriorkitError(
            f"the loss is not finite at step {self._step} for {len(bad)} rows (keys {', '.join(keys)}, ...); "
            "`priorkit inspect` finds unsound embeddings; else lower train.optimiser.learning_rate"
        )

    def _write_line(self, **values: float) -> None:
        rate = learning_rate(self._settings.optimiser, self._step - 1, self._settings.steps)
        self._log.append({"step": self._step, **values, "learning_rate": rate})

    def _save(self) -> None:
        """Log first, then checkpoint: a log that runs ahead is cut at the next start, one that lags has a gap."""
        with self._folder.store.create(LOG_NAME) as file:
            file.write("".join(json.dumps(line) + "\n" for line in self._log).encode())
        state = TrainState(
            step=self._step,
            network=dict(self._network.state_dict()),
            average=dict(self._average.state_dict()),
            optimiser=optimiser_tensors(self._optimiser, self._network),
            normaliser=dict(self._normaliser.state_dict()),
            torch_random=torch.get_rng_state(),
        )
        fingerprint = self._folder.manifest.settings_fingerprint
        save_state(self._folder.store, state, fingerprint, self._settings.keep_checkpoints)

    def _restore(self) -> int:
        store = self._folder.store
        state = load_state(store, self._folder.manifest.settings_fingerprint)
        if state is not None and store.size(LOG_NAME) is None:
            # every checkpoint follows a log; one without is what a killed --overwrite left of the old training
            clear_states(store)
            state = None
        if state is None:
            self._fit_normaliser()
            return 0
        self._network.load_state_dict(state.network)
        self._average.load_state_dict(state.average)
        self._normaliser.load_state_dict(state.normaliser)
        restore_optimiser(self._optimiser, self._network, state.optimiser)
        torch.set_rng_state(state.torch_random)
        with store.open(LOG_NAME) as file:
            lines = [json.loads(line) for line in file.read().splitlines()]
        self._log = [line for line in lines if line["step"] <= state.step]
        return state.step

    def _publish(self) -> None:
        """Write the prior and record it: from here on it exists."""
        manifest = self._folder.manifest
        input = self._dataset.content_fingerprint
        commit = ShardCommit(self._folder.store, RECORD, input=input, settings=manifest.settings_fingerprint)
        save_prior(commit.create, self._config, self._average, self._normaliser)
        with commit.create(LOG_NAME) as file:
            file.write("".join(json.dumps(line) + "\n" for line in self._log).encode())
        self._folder.add(commit.commit(rows=self._rows))
