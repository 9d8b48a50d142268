"""Estimates of x0 (the clean embeddings) with classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598).

Guidance amplifies the difference between two network outputs: the output with the text, and the output of the *null
branch*, which drops the text. There are two kinds of guidance:

- `text` guidance drops the text in the null branch and keeps the noisy image. Each step runs both branches in one
  batch. If all dropped texts have the same prefix (encoded text), the prefix is computed once and cached until the
  weights change.
- `dalle2` guidance also drops the noisy image, as DALLE2-pytorch does. If the null branch's output then depends only on
  the timestep, it is computed once per timestep and stored in a table.
"""

from __future__ import annotations

import torch

from ..network.interface import Network, Prefix
from ..objective.normaliser import EmbeddingNormaliser
from ..objective.schedule import NoiseSchedule
from ..objective.settings import DiffusionSettings
from .samplers import Estimate
from .settings import GuidanceName


class NullBranch:
    """Cache of results for the null branch of classifier-free guidance, which runs the network with the text dropped.

    The cached results are the encoding that all dropped texts share, and network outputs with text and image dropped.
    They are computed when first needed. Create a new instance after the weights change.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._prefix: Prefix | None = None
        self._outputs: dict[int, torch.Tensor] = {}

    @property
    def is_constant(self) -> bool:
        """True if all dropped texts have the same encoding (prefix), so that it needs to be computed only once."""
        return self._network.has_null_text

    @property
    def has_table(self) -> bool:
        """True if the network output depends only on the timestep when text and noisy image are both dropped.

        If true, `dalle2` guidance can use one stored output per timestep, and need not run the null branch at each
        step.
        """
        return self.is_constant and not self._network.takes_self_cond

    def prefix(self) -> Prefix:
        """Return the encoded text (prefix) that all dropped texts share. Call this only if `is_constant` is true."""
        if self._prefix is None:
            self._prefix = null_prefix(self._network, *self._placeholder_text())
        return self._prefix

    def outputs(self, timesteps: list[int]) -> torch.Tensor:
        """Return the network's output at each timestep when both the text and the noisy image are dropped.

        The result has the shape `[len(timesteps), D]`, where D is the embedding size. Outputs for timesteps that are
        not yet cached are computed. Call this only if `has_table` is true.
        """
        missing = [timestep for timestep in timesteps if timestep not in self._outputs]
        if missing:
            network, device = self._network, self._network.device
            rows = torch.zeros(len(missing), network.embed_dim, dtype=network.dtype, device=device)
            drop = torch.ones(len(missing), dtype=torch.bool, device=device)
            # one text per timestep, because the attention mask grows quadratically with the number of draws per text
            prefix = self.prefix().expand(len(missing))
            output = network.suffix(prefix, rows, torch.tensor(missing, device=device), drop_image=drop)
            self._outputs |= dict(zip(missing, output, strict=True))
        return torch.stack([self._outputs[timestep] for timestep in timesteps])

    def _placeholder_text(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return a zero text embedding and zero token states, one row each, to stand in for a dropped text.

        The token states are None if the network takes none.
        """
        network = self._network
        text = torch.zeros(1, network.text_dim, dtype=network.dtype, device=network.device)
        return text, text.new_zeros(1, 1, network.token_width or 0) if network.takes_token_states else None


def null_prefix(network: Network, text_embed: torch.Tensor, token_states: torch.Tensor | None) -> Prefix:
    """Encode B texts for the null branch of guidance, in which the network drops the text.

    The result may still depend on the texts, because some networks drop only the token states.
    """
    return network.prefix(
        text_embed, token_states, torch.ones(len(text_embed), dtype=torch.bool, device=text_embed.device)
    )


class Denoiser:
    """Callable that estimates x0 during one sampler run, for B texts with K draws (embeddings to sample) each.

    For self-conditioned networks, each estimate is an input of the network at the next step.

    Args:
        prefix: the B texts, encoded by `Network.prefix`.
        guidance: inputs that the null branch (the network evaluation without text) drops: `text` drops the text, and
            `dalle2` drops the text and the noisy image.
        guidance_scale: weight of the difference between the outputs with and without text. At 1, the null branch is not
            run.
        null: cache for the null branch; required unless `guidance_scale` is 1.
        null_prefix: the B texts, encoded for the null branch by the function `null_prefix`. Required if
            `guidance_scale` is not 1 and `null.is_constant` is false. It may also be negative prompts.
        grid: all timesteps at which the sampler needs an estimate.
    """

    def __init__(
        self,
        network: Network,
        schedule: NoiseSchedule,
        diffusion: DiffusionSettings,
        normaliser: EmbeddingNormaliser,
        prefix: Prefix,
        *,
        guidance: GuidanceName = "text",
        guidance_scale: float = 1.0,
        null: NullBranch | None = None,
        null_prefix: Prefix | None = None,
        grid: list[int],
    ) -> None:
        self._network, self._schedule, self._diffusion, self._normaliser = network, schedule, diffusion, normaliser
        self._prefix, self._scale, self._guidance = prefix, guidance_scale, guidance
        self._last: torch.Tensor | None = None
        self._table: dict[int, torch.Tensor] | None = None
        if guidance_scale != 1.0:
            assert null is not None
            if guidance == "dalle2" and null.has_table and null_prefix is None:
                self._table = dict(zip(grid, null.outputs(grid), strict=True))
            else:
                if null_prefix is None:
                    null_prefix = null.prefix().expand(prefix.texts)
                self._prefix = prefix.stacked_with(null_prefix)

    def __call__(self, x_t: torch.Tensor, timesteps: torch.Tensor) -> Estimate:
        """Estimate x0 at one step of the sampler.

        Args:
            x_t: noisy embeddings `[N, D]` (N embeddings of size D).
            timesteps: timestep of each embedding, `[N]`. All timesteps must be equal.
        """
        output = self._output(x_t, timesteps)
        unclamped = self._schedule.to_x0(self._diffusion.prediction, output, x_t, timesteps)
        x0 = unclamped
        if self._diffusion.x0_clamp == "unit_box":
            x0 = unclamped.clamp(-1, 1)
        elif self._diffusion.clip_sample_range is not None:
            x0 = unclamped.clamp(-self._diffusion.clip_sample_range, self._diffusion.clip_sample_range)
        elif self._diffusion.x0_clamp == "sphere":
            x0 = self._normaliser.to_sphere(unclamped)
        if self._network.takes_self_cond:
            self._last = x0
        return Estimate(x0, unclamped)

    def _output(self, x_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Run the network, and return its output with guidance applied, `[N, D]`; see `__call__` for the arguments."""
        timestep = timesteps[:1].expand(self._prefix.texts)
        if self._scale == 1.0:
            return self._network.suffix(self._prefix, x_t, timestep, self_cond=self._last)
        if self._table is not None:
            output = self._network.suffix(self._prefix, x_t, timestep, self_cond=self._last)
            null = self._table[int(timesteps[0])]
            return null + self._scale * (output - null)
        rows = len(x_t)
        drop_image = None
        if self._guidance == "dalle2":
            drop_image = torch.arange(2 * rows, device=x_t.device) >= rows
        last = None if self._last is None else self._last.repeat(2, 1)
        both = self._network.suffix(self._prefix, x_t.repeat(2, 1), timestep, drop_image=drop_image, self_cond=last)
        output, null = both.chunk(2)
        return null + self._scale * (output - null)
