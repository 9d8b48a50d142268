"""Scoring of predictors on blocks of rows. This part of an evaluation runs in workers."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from ...pipeline.compute.device import require_device
from ...pipeline.contract.file_marks import FileMark
from ...pipeline.errors import InputError
from ...pipeline.read.dataset import EmbeddingBatch, EmbeddingDataset, Split
from ...pipeline.read.settings import ReadSettings
from ..model.prior import Prior
from ..model.settings import WeightsName
from ..objective.diffusion import diffusion_loss
from ..objective.randomness import StepRandomness
from ..sampling.settings import SampleSettings
from .baselines import Bank, fit_baselines
from .metrics import RECALL_AT, cosine, diversity, energy_score, rank
from .predictors import LOSS, GivenPredictions, Predictor, PriorPredictor, RowNoise, as_units, read_predictions
from .rows import EvaluatedRows
from .settings import EvaluateSettings
from .subject import PriorSource

GIVEN = "given predictions"
"""Predictor name used when a file of predictions is evaluated instead of a prior."""


@dataclass(frozen=True)
class Variant:
    """Combination of prior weights and sampling settings, evaluated as one predictor."""

    name: str
    """Predictor name in tables and files."""
    weights: WeightsName
    """Name of the weights to load."""
    sample: SampleSettings
    """Sampling settings."""


def variants(settings: EvaluateSettings) -> list[Variant]:
    """Return the combinations of weights and sampling settings to evaluate.

    The first variant, `prior`, uses `settings.sample` and the first entry of `settings.weights`. It is followed by one
    variant for each further entry of `settings.weights`. The remaining variants each change one sampling setting of
    `prior` to a value in `settings.sweep`. Values that `prior` already uses are skipped.
    """
    base, first = settings.sample, settings.weights[0]
    listed = [Variant("prior", first, base)]
    listed += [Variant(f"prior, {weights} weights", weights, base) for weights in settings.weights[1:]]
    sweep = settings.sweep
    swept = (("steps", sweep.steps), ("sampler", sweep.samplers), ("guidance_scale", sweep.guidance_scales))
    for field, values in swept:
        for value in values:
            sample = base.model_copy(update={field: value})
            if sample != base:
                listed.append(Variant(f"prior, {field}={value}", first, sample))
    return list({variant.name: variant for variant in listed}.values())


@dataclass(frozen=True)
class ScoreTask:
    """Task for one block of a split: score one predictor, or compute losses with one of the prior's sets of weights."""

    split: Split
    name: str
    """Name of the predictor, or name of the weights if losses are computed."""
    block: int
    """Block number within the split."""
    is_loss: bool = False
    """True to compute losses, False to score predictions."""


@dataclass(frozen=True)
class BlockScores:
    """Scores or losses that one `ScoreTask` computed for a block of B rows."""

    task: ScoreTask
    values: dict[str, np.ndarray]
    """Per-row values `[B]`, keyed by metric name or, for losses, by timestep bin."""
    first_draws: np.ndarray
    """First predicted embedding of each of R rows, used to compute distances, `[R, D]`; empty for losses.

    D is the embedding size. R is the number of the block's rows that are among the split's first `distance_rows`
    evaluated rows.
    """
    draws: int = 0
    """Number of predicted embeddings per row; 0 for losses."""
    broken: str | None = None
    """Reason why the predictions could not be scored, such as values that are not finite; None if they were scored."""


class Scorer:
    """Callable that runs a `ScoreTask`: it scores a predictor, or computes losses, for one block of rows.

    Priors, baselines and galleries (images searched for recall) are loaded or computed on first use, and cached.

    Args:
        dataset: embeddings.
        settings: settings with `auto` values already resolved.
        load_prior: function that takes the name of the weights and loads the prior; None if predictions from a file
            are evaluated.
        given: predictions for all N rows of the dataset, one or K embeddings of size D per row: `[N, D]` or
            `[N, K, D]`; None if a prior is evaluated.
    """

    def __init__(
        self,
        dataset: EmbeddingDataset,
        settings: EvaluateSettings,
        load_prior: Callable[[WeightsName], Prior] | None,
        given: np.ndarray | None = None,
    ) -> None:
        self._dataset, self._settings, self._load_prior, self._given = dataset, settings, load_prior, given
        self._variants = {variant.name: variant for variant in variants(settings)}
        self._priors: dict[str, Prior] = {}

    def __call__(self, task: ScoreTask, following: ScoreTask | None = None) -> BlockScores:
        """Run a task, and return the scores or losses for its block of rows.

        `following`, the task that will run next, is ignored.
        """
        return self._score_losses(task) if task.is_loss else self._score_draws(task)

    def _score_losses(self, task: ScoreTask) -> BlockScores:
        evaluated = self._evaluated(task.split)
        chosen = evaluated.block(task.block)
        prior = self._prior(cast(WeightsName, task.name))
        if not prior.config.network.uses_time:
            return BlockScores(task, {}, np.empty((0, 0)), broken="none: this prior does not see the timestep")
        batch = prior.read(self._dataset, evaluated.rows[chosen])
        values = timestep_losses(prior, batch, evaluated.ids[chosen], self._settings)
        return BlockScores(task, values, np.empty((0, 0)))

    def _score_draws(self, task: ScoreTask) -> BlockScores:
        evaluated = self._evaluated(task.split)
        chosen = evaluated.block(task.block)
        batch = self._read(task.name, evaluated.rows[chosen])
        draws = self._predictor(task.name)(batch, evaluated.ids[chosen])  # (B, K, D)
        finite = np.isfinite(draws).all(axis=(1, 2))
        if not finite.all():
            row = int(batch.rows[np.flatnonzero(~finite)[0]])
            problem = f"not finite, or of norm 0, first for row {row}"
            return BlockScores(task, {}, np.empty((0, 0)), draws.shape[1], problem)
        texts = None
        if is_one_space(self._dataset):
            unrelated = self._dataset.take(evaluated.rows[evaluated.unrelated[chosen]]).text_embed
            texts = as_units(batch.text_embed), as_units(unrelated)
        truth = as_units(batch.image_embed)
        nearer = rank(draws[:, 0], truth, self._gallery(task.split), evaluated.gallery_index[chosen])
        values = row_metrics(draws, truth, texts, nearer)
        # copy the first draws, because a view would keep all draws of the block in memory
        first_draws = draws[: max(0, self._settings.distance_rows - chosen.start), 0].copy()
        return BlockScores(task, values, first_draws, draws.shape[1])

    @functools.lru_cache  # noqa: B019 - each worker keeps one scorer until it exits
    def _evaluated(self, split: Split) -> EvaluatedRows:
        return EvaluatedRows(self._dataset, split, self._settings)

    @functools.lru_cache  # noqa: B019
    def _gallery(self, split: Split) -> np.ndarray:
        evaluated = self._evaluated(split)
        return as_units(self._dataset.take(evaluated.rows[evaluated.gallery]).image_embed)

    @functools.cached_property
    def _baselines(self) -> Mapping[str, Predictor]:
        bank = Bank.read(self._dataset, self._settings.bank_rows, self._settings.seed)
        if len(bank.text) < 2:
            raise InputError(
                f"{self._dataset.store.url}: the training split has {len(bank.text)} rows, and baselines need at least "
                "2; lower read.test_fraction or read.validation_fraction"
            )
        return fit_baselines(bank, self._settings.draws, self._settings.seed, one_space=is_one_space(self._dataset))

    def _prior(self, weights: WeightsName) -> Prior:
        assert self._load_prior is not None
        if weights not in self._priors:
            self._priors[weights] = self._load_prior(weights)
        return self._priors[weights]

    def _read(self, predictor: str, rows: np.ndarray) -> EmbeddingBatch:
        """Read rows in the form that a predictor takes. Baselines and predictions from a file take no token states."""
        variant = self._variants.get(predictor)
        if variant is None or self._load_prior is None:
            return self._dataset.take(rows)
        return self._prior(variant.weights).read(self._dataset, rows)

    def _predictor(self, name: str) -> Predictor:
        if name == GIVEN:
            assert self._given is not None
            return GivenPredictions(self._given)
        if name in self._variants:
            variant = self._variants[name]
            return PriorPredictor(
                self._prior(variant.weights), variant.sample, self._settings.draws, self._settings.seed
            )
        return self._baselines[name]


def is_one_space(dataset: EmbeddingDataset) -> bool:
    """Return True if the text and image embeddings of a dataset are in one space, so that they can be compared."""
    return dataset.spaces is None and dataset.text_dim == dataset.embed_dim


def row_metrics(
    draws: np.ndarray, image: np.ndarray, texts: tuple[np.ndarray, np.ndarray] | None, nearer: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the per-row values `[B]` of all metrics that are averaged over rows, keyed by metric name.

    All embeddings must have norm 1. In array shapes, B is the number of rows, K the number of predicted embeddings per
    row, and D the embedding size.

    Args:
        draws: predicted embeddings of each row, `[B, K, D]`.
        image: embedding of each row's true image, `[B, D]`.
        texts: embedding of each row's caption and of an unrelated caption, `[B, D]` each. None if texts and images are
            in different spaces; cosines to text are then left out, because they mean nothing.
        nearer: number of gallery images that are closer to the first predicted embedding than the true image is, `[B]`.
    """
    cosines = {}
    if texts is not None:
        text, unrelated = texts
        to_text = cosine(draws, text)
        cosines = {
            "cosine_to_text": to_text,
            "cosine_to_unrelated_caption": cosine(draws, unrelated),
            "difference_from_baseline": to_text - cosine(image[:, None], text),
        }
    recalls = {f"recall_at_{n}": (nearer < n).astype(np.float64) for n in RECALL_AT}
    return {
        "energy_score": energy_score(draws, image),
        "cosine_to_image": cosine(draws, image),
        **cosines,
        **recalls,
        "diversity": diversity(draws),
    }


@torch.inference_mode()
def timestep_losses(
    prior: Prior, batch: EmbeddingBatch, row_ids: np.ndarray, settings: EvaluateSettings
) -> dict[str, np.ndarray]:
    """Return the losses of B rows at one random timestep per timestep bin: arrays `[B]`, keyed by bin name.

    The timesteps are divided into `settings.loss_bins` bins of about equal width. A bin is named after its first and
    last timestep, such as `0-99`. If there are more bins than timesteps, empty bins are left out. Noise and timesteps
    depend only on the row and the seed, so all priors are evaluated with the same noise at the same timesteps. In
    training, the text or the noisy image may be dropped at random (hidden from the network); here, they never are.
    """
    diffusion, dim = prior.config.diffusion, prior.config.embed_dim
    states = None if batch.token_states is None else torch.from_numpy(batch.token_states)
    condition = prior.condition(torch.from_numpy(batch.text_embed), states)
    image = torch.from_numpy(batch.image_embed).to(prior.device)
    stream = RowNoise(settings.seed, LOSS, row_ids, (dim + 1,))
    no_drop = torch.zeros(len(row_ids), 1, dtype=torch.bool)
    edges = np.linspace(0, diffusion.timesteps, settings.loss_bins + 1).round().astype(np.int64)
    losses = {}
    for first, end in itertools.pairwise(edges.tolist()):
        if first == end:  # the bin is empty, because there are more bins than timesteps
            continue
        drawn = stream.draw()
        # the last value selects the timestep: a large multiple of a normal value has a nearly uniform fractional part
        fraction = np.modf(np.abs(drawn[:, -1].astype(np.float64)) * 4096)[0]
        timesteps = torch.from_numpy(first + (fraction * (end - first)).astype(np.int64))[:, None]
        random = StepRandomness(torch.from_numpy(drawn[:, None, :-1].copy()), timesteps, no_drop, no_drop, no_drop)
        loss = diffusion_loss(
            prior.network, prior.schedule, diffusion, prior.normaliser, image, condition, random.to(prior.device)
        )
        losses[f"{first}-{end - 1}"] = loss.double().cpu().numpy()
    return losses


@dataclass(frozen=True)
class ScorerMaker:
    """Picklable factory for `Scorer`. Each worker calls the factory to create a scorer with its own open files."""

    embeddings: str
    """Folder of the embeddings."""
    read: ReadSettings
    """Settings that assign rows to the training, validation and test splits."""
    settings: EvaluateSettings
    """Settings with `auto` values already resolved."""
    source: PriorSource
    """Location of the prior or predictions."""
    files: Mapping[str, FileMark] | None = None
    """Known size, modification time and hash of each embedding file, so that workers do not hash unchanged files again.

    Used only if the embeddings have no manifest.
    """

    def __call__(self) -> Scorer:
        """Open the embeddings and create a scorer for them.

        A file of predictions is opened immediately. A prior is loaded only when the scorer first needs it.
        """
        torch.set_num_threads(self.settings.threads)
        dataset = EmbeddingDataset(self.embeddings, self.read, known_files=self.files)
        if self.source.is_predictions:
            return Scorer(dataset, self.settings, None, read_predictions(self.source.path, dataset))
        require_device(self.settings.device)
        return Scorer(dataset, self.settings, functools.partial(self.source.load, device=self.settings.device))
