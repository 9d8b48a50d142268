"""Training step: compute gradients, sum them over ranks, and update weights and averaged weights. Does not use Ray."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from ...pipeline.contract.empty_inputs import EmptyInputs
from ...pipeline.errors import PriorkitError
from ...pipeline.read.batches import TrainBatch
from ...pipeline.read.dataset import EmbeddingDataset
from ..model.config import PriorConfig, build_network, build_normaliser
from ..model.empty import set_empty_text
from ..model.folder import TrainState, optimiser_tensors, restore_optimiser
from ..network.interface import Condition, Network
from ..network.lora import add_adapters, is_adapter_weight
from ..objective.diffusion import diffusion_loss
from ..objective.randomness import dropout_seed, step_randomness
from ..objective.schedule import noise_schedule
from .optim import build_optimiser, learning_rate, update_ema
from .ranks import Ranks
from .settings import TrainSettings
from .text import raw_images

_NAMED_ROWS = 5
"""Maximum number of rows listed in an error message."""


class NotFinite(PriorkitError):
    """Raised when a loss, a gradient or a validation score is NaN or infinite."""

    def __init__(self, message: str, rows: list[int]) -> None:
        super().__init__(message)
        self.rows = rows
        """Row numbers, in the dataset, of rows with a non-finite loss or score. The list may be incomplete. If only the
        gradient is not finite, it contains some rows of the batch."""

    def with_keys(self, dataset: EmbeddingDataset) -> PriorkitError:
        """Return an error for the user that lists the affected rows by row number and key, and suggests a fix."""
        return PriorkitError(
            f"{self} ({dataset.describe_rows(self.rows)}); `priorkit inspect` finds unsound embeddings; else lower "
            "train.optimiser.learning_rate"
        )


class Learner:
    """Network, averaged network, normaliser and optimiser of a training run. All ranks hold identical copies."""

    def __init__(
        self, config: PriorConfig, settings: TrainSettings, ranks: Ranks, empty: EmptyInputs | None = None
    ) -> None:
        self._settings, self._ranks = settings, ranks
        self._embed_dim = config.embed_dim
        torch.manual_seed(settings.seed)
        self.network = build_network(config).to(ranks.device)
        set_empty_text(self.network, empty)
        if settings.lora is not None:
            add_adapters(self.network, settings.lora.targets, settings.lora.rank, settings.lora.resolved_alpha)
        self.normaliser = build_normaliser(config).to(ranks.device)
        frozen = {id(value): value for value in self.network.parameters() if not value.requires_grad}
        # weights that are not trained are shared, because large ones would need their memory twice
        self.average = copy.deepcopy(self.network, frozen).requires_grad_(False).eval()
        prepare_network(
            self.network, compile=settings.compile, activation_checkpointing=settings.activation_checkpointing
        )
        self._optimiser = build_optimiser(self.network, settings.optimiser)
        self._schedule = noise_schedule(settings.diffusion.noise_schedule, settings.diffusion.timesteps)

    def backward(self, step: int, batch: TrainBatch, text: Condition) -> torch.Tensor:
        """Compute gradients for this rank's rows, in `accumulate` micro-batches, and return the loss of each row.

        The differentiated value is the sum of this rank's losses, divided by the number of rows in the global batch.
        Summed over all ranks, the gradients are therefore those of the mean loss over the global batch.

        Args:
            step: step number, from 0.
            batch: this rank's rows of the global batch.
            text: text condition for these rows.

        Returns:
            Loss of each of this rank's B rows, `[B]`, on the CPU.
        """
        self._seed_dropout(step)
        self.network.train()
        self._optimiser.zero_grad(set_to_none=True)
        losses = torch.zeros(len(batch.rows))
        for part in _parts(len(batch.rows), self._settings.accumulate):
            part_losses = self._losses(step, batch, text, part)
            (part_losses.sum() / batch.global_rows).backward()  # type: ignore[no-untyped-call]
            losses[part] = part_losses.detach().float().cpu()
        return losses

    def reduce(self, step: int, batch: TrainBatch, losses: torch.Tensor, stop: bool) -> tuple[float, bool]:
        """Combine the results of `backward` from all ranks.

        Each rank's gradients are replaced by the sum over all ranks.

        Args:
            step: step number, from 0.
            batch: this rank's rows of the global batch.
            losses: loss of each of this rank's B rows, `[B]`, from `backward`.
            stop: True if this rank has received a stop request.

        Returns:
            Mean loss over the global batch, and a flag that is True if any rank has received a stop request.

        Raises:
            NotFinite: at least one loss on any rank is not finite. Every rank then raises this error.
        """
        not_finite = batch.rows[~torch.isfinite(losses).numpy()]
        parameters = list(self.network.parameters())
        has_gradient = [float(parameter.grad is not None) for parameter in parameters]
        local = [losses.double().sum().item() / batch.global_rows, float(len(not_finite)), float(stop), *has_gradient]
        loss, not_finite_rows, stops, *has_gradient = self._ranks.sum(torch.tensor(local, dtype=torch.float64)).tolist()
        if not_finite_rows:
            message = f"the loss is not finite at step {step} for {not_finite_rows:.0f} rows"
            raise NotFinite(message, self._some_rows(not_finite))
        # a gradient that is None on all ranks stays None, so that the optimiser skips it as in a single process
        self._ranks.sum_gradients([each for each, ranks in zip(parameters, has_gradient, strict=True) if ranks])
        return loss, stops > 0

    def update(self, step: int, batch: TrainBatch) -> float:
        """Clip the summed gradient, update weights and averaged weights, and return the gradient norm before clipping.

        Args:
            step: step number, from 0.
            batch: this rank's rows of the global batch, for the error message.

        Raises:
            NotFinite: the gradient norm is not finite. Every rank then raises this error.
        """
        settings = self._settings
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), settings.optimiser.max_grad_norm).item()
        if not math.isfinite(norm):
            raise NotFinite(f"the gradient is not finite at step {step}", self._some_rows(batch.rows))
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate(settings.optimiser, step, settings.steps)
        self._optimiser.step()
        update_ema(self.average, self.network, settings.optimiser.ema_decay, step)
        return norm

    def checkpoint(self, step: int) -> TrainState:
        """Return the state for a checkpoint after `step` steps, from which training can resume exactly.

        If adapters are trained, the checkpoint leaves out all other weights, which are those of the initial prior.
        """
        state = self.state(step)
        if self._settings.lora is None:
            return state
        networks = (state.network, state.average)
        state.network, state.average = ({n: v for n, v in each.items() if is_adapter_weight(n)} for each in networks)
        return state

    def state(self, step: int) -> TrainState:
        """Return the complete state after `step` steps."""
        return TrainState(
            step=step,
            network=dict(self.network.state_dict()),
            average=dict(self.average.state_dict()),
            optimiser=optimiser_tensors(self._optimiser, self.network),
            normaliser=dict(self.normaliser.state_dict()),
        )

    def restore(self, state: TrainState) -> None:
        """Replace weights, averaged weights, normaliser statistics and optimiser state with those of a checkpoint.

        If adapters are trained, weights that the checkpoint lacks stay as they are.
        """
        for network, weights in ((self.network, state.network), (self.average, state.average)):
            network.load_state_dict(weights if self._settings.lora is None else {**network.state_dict(), **weights})
        self.normaliser.load_state_dict(state.normaliser)
        restore_optimiser(self._optimiser, self.network, state.optimiser)

    def _losses(self, step: int, batch: TrainBatch, text: Condition, part: slice) -> torch.Tensor:
        """Compute the loss of each row in one micro-batch, with the autograd graph that `backward` needs.

        Args:
            step: step number, from 0.
            batch: this rank's rows of the global batch.
            text: text condition for these rows.
            part: slice that selects the rows of the micro-batch from `batch` and `text`.
        """
        device, diffusion = self._ranks.device, self._settings.diffusion
        random = step_randomness(
            seed=self._settings.seed, step=step, first=batch.first + part.start, rows=part.stop - part.start,
            draws=self._settings.noise_draws, embed_dim=self._embed_dim, diffusion=diffusion,
        )  # fmt: skip
        text_embed = text.text_embed[part].to(device).float()  # (B, D)
        if not self.network.takes_raw_text:
            text_embed = F.normalize(text_embed, dim=-1)
        states = None if text.token_states is None else text.token_states[part].to(device).float()  # (B, T, W)
        image_embed = raw_images(batch)[part].to(device)  # (B, D)
        with autocast(self._settings.dtype, device):
            return diffusion_loss(
                self.network, self._schedule, diffusion, self.normaliser, image_embed, Condition(text_embed, states),
                random.to(device),
            )  # fmt: skip

    def _seed_dropout(self, step: int) -> None:
        """Seed torch's random generator for dropout from the seed, the step and the rank.

        Checkpoints therefore do not have to store the state of the generator.
        """
        seed = dropout_seed(self._settings.seed, step, self._ranks.rank)
        if self._ranks.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # torch.manual_seed also formats a traceback for unused devices
        else:
            torch.manual_seed(seed)

    def _some_rows(self, rows: np.ndarray) -> list[int]:
        """Collect row numbers from all ranks, and return at most `_NAMED_ROWS` of them.

        Every rank must call this method, and every rank returns the same list.

        Args:
            rows: dataset row numbers on this rank; may be empty.
        """
        return self._ranks.gather(rows[:_NAMED_ROWS].tolist())[:_NAMED_ROWS]


def prepare_network(network: Network, *, compile: bool = False, activation_checkpointing: bool = False) -> None:
    """Prepare a network for training, in place: optionally compile its layers and checkpoint their activations.

    Weights, parameter names and outputs do not change.

    Args:
        compile: True to compile the layers with torch.compile.
        activation_checkpointing: True to recompute each layer in the backward pass instead of storing its activations.
    """
    network.checkpoint_activations = activation_checkpointing
    if compile:
        network.compile_layers()


def autocast(dtype: str, device: torch.device) -> torch.autocast:
    """Return a context manager that sets the precision of matrix products while the loss is computed.

    Weights stay in float32, and sums are computed in float32.

    Args:
        dtype: `bfloat16` to run matrix products in bfloat16; `float32` to run them in float32.
        device: device that the loss is computed on.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def _parts(rows: int, count: int) -> Iterator[slice]:
    """Split `rows` rows into up to `count` non-empty slices of nearly equal size."""
    edges = [rows * part // count for part in range(count + 1)]
    return (slice(first, end) for first, end in itertools.pairwise(edges) if first < end)
