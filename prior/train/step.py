"""The training step: gradients over all ranks, the optimiser, and the averaged weights. Knows nothing of Ray."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ...pipeline.errors import PriorkitError
from ...pipeline.read.batches import TrainBatch
from ..model.config import PriorConfig, build_network, build_normaliser
from ..model.folder import TrainState, optimiser_tensors, restore_optimiser
from ..network.interface import Condition
from ..objective.diffusion import diffusion_loss
from ..objective.randomness import dropout_seed, step_randomness
from ..objective.schedule import noise_schedule
from .ema import update_ema
from .optim import build_optimiser, learning_rate
from .prepare import autocast, prepare_network
from .ranks import Ranks
from .settings import TrainSettings
from .text import TextOf

_NAMED_ROWS = 5
"""Of those with a loss that is not finite."""


class NotFinite(PriorkitError):
    """A loss or a gradient is not finite."""

    def __init__(self, what: str, rows: list[int]) -> None:
        super().__init__(what)
        self.rows = rows
        """Numbers of some rows of the batch: those whose loss it is, where it is a loss."""


@dataclass(frozen=True)
class StepResult:
    """What came of a step, over all ranks."""

    loss: float
    """Mean over the rows of the global batch."""
    grad_norm: float
    """Before clipping."""
    stop: bool
    """Whether any rank was asked to stop."""


class Learner:
    """Network, averaged network, normaliser and optimiser of a training, the same on every rank."""

    def __init__(self, config: PriorConfig, settings: TrainSettings, ranks: Ranks) -> None:
        self._settings, self._ranks = settings, ranks
        self._embed_dim = config.embed_dim
        torch.manual_seed(settings.seed)
        self.network = build_network(config).to(ranks.device)
        self.normaliser = build_normaliser(config).to(ranks.device)
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()
        prepare_network(
            self.network, compile=settings.compile, activation_checkpointing=settings.activation_checkpointing
        )
        self._optimiser = build_optimiser(self.network, settings.optimiser)
        self._schedule = noise_schedule(settings.diffusion.noise_schedule, settings.diffusion.timesteps)

    def step(self, number: int, batch: TrainBatch, text_of: TextOf, should_stop: Callable[[], bool]) -> StepResult:
        """One optimiser step, number `number` from 0, on this rank's share of a global batch.

        Raises:
            NotFinite: on all ranks alike.
        """
        settings, ranks = self._settings, self._ranks
        self._seed_dropout(number)
        self.network.train()
        self._optimiser.zero_grad(set_to_none=True)
        text = text_of(batch)
        losses = torch.zeros(len(batch.rows))
        for part in _parts(len(batch.rows), settings.accumulate):
            part_losses = self._losses(number, batch, text, part)
            (part_losses.sum() / batch.global_rows).backward()  # type: ignore[no-untyped-call]
            losses[part] = part_losses.detach().float().cpu()
        bad = batch.rows[~torch.isfinite(losses).numpy()]
        parameters = list(self.network.parameters())
        has_gradient = [float(parameter.grad is not None) for parameter in parameters]
        own = [losses.double().sum().item() / batch.global_rows, float(len(bad)), float(should_stop()), *has_gradient]
        loss, bad_rows, stop, *has_gradient = ranks.sum(torch.tensor(own, dtype=torch.float64)).tolist()
        if bad_rows:
            raise NotFinite(f"the loss is not finite at step {number} for {bad_rows:.0f} rows", self._named(bad))
        # one that no rank has stays without, as in one process: the optimiser leaves it alone
        ranks.sum_gradients([each for each, found in zip(parameters, has_gradient, strict=True) if found])
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.optimiser.max_grad_norm).item()
        if not math.isfinite(norm):
            raise NotFinite(f"the gradient is not finite at step {number}", self._named(batch.rows))
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate(settings.optimiser, number, settings.steps)
        self._optimiser.step()
        update_ema(self.average, self.network, settings.optimiser.ema_decay, number)
        return StepResult(loss, norm, stop > 0)

    def state(self, step: int) -> TrainState:
        """What exact continuation after `step` steps needs."""
        return TrainState(
            step=step,
            network=dict(self.network.state_dict()),
            average=dict(self.average.state_dict()),
            optimiser=optimiser_tensors(self._optimiser, self.network),
            normaliser=dict(self.normaliser.state_dict()),
        )

    def restore(self, state: TrainState) -> None:
        """Go on from there."""
        self.network.load_state_dict(state.network)
        self.average.load_state_dict(state.average)
        self.normaliser.load_state_dict(state.normaliser)
        restore_optimiser(self._optimiser, self.network, state.optimiser)

    def _losses(self, number: int, batch: TrainBatch, text: Condition, part: slice) -> torch.Tensor:
        """The losses of some rows of the batch."""
        device, diffusion = self._ranks.device, self._settings.diffusion
        random = step_randomness(
            seed=self._settings.seed, step=number, first=batch.first + part.start, rows=part.stop - part.start,
            draws=self._settings.noise_draws, embed_dim=self._embed_dim, diffusion=diffusion,
        )  # fmt: skip
        text_embed = F.normalize(text.text_embed[part].to(device).float(), dim=-1)
        states = None if text.token_states is None else text.token_states[part].to(device).float()
        image_embed = torch.from_numpy(batch.image_embed[part]).to(device)
        with autocast(self._settings.dtype, device):
            return diffusion_loss(
                self.network, self._schedule, diffusion, self.normaliser, image_embed, Condition(text_embed, states),
                random.to(device),
            )  # fmt: skip

    def _seed_dropout(self, number: int) -> None:
        """Make dropout a function of seed, step and rank."""
        torch.manual_seed(dropout_seed(self._settings.seed, number, self._ranks.rank))

    def _named(self, rows: np.ndarray) -> list[int]:
        return self._ranks.gather(rows[:_NAMED_ROWS].tolist())[:_NAMED_ROWS]


def _parts(rows: int, count: int) -> Iterator[slice]:
    """`rows` rows in `count` parts, of which those that would be empty are left out."""
    edges = [rows * part // count for part in range(count + 1)]
    return (slice(first, end) for first, end in itertools.pairwise(edges) if first < end)
