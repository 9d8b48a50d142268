"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): from a prior's network to estimates of x0.

`text` guidance drops the text in its other branch and keeps the noisy image: that branch's prefix is one constant of a
checkpoint, and a step runs both branches as one batch. `dalle2` guidance drops the image too, as DALLE2-pytorch does:
its other branch depends on the timestep alone, so that it is looked up in a table.
"""

from __future__ import annotations

import torch

from ..network.cache import PrefixCache
from ..network.network import PriorNetwork
from ..objective.normaliser import EmbeddingNormaliser
from ..objective.schedule import NoiseSchedule
from ..objective.settings import DiffusionSettings
from .samplers import Estimate
from .settings import GuidanceName


class NullBranch:
    """What a network makes of no text: constants of a checkpoint, computed when first needed.

    Args:
        network: a change of its weights is noticed, if torch counts it.
    """

    def __init__(self, network: PriorNetwork) -> None:
        self._network = network
        self._padding: PrefixCache | None = None
        self._prefix: PrefixCache | None = None
        self._outputs: dict[int, torch.Tensor] = {}
        self._computed_from = self._weights()

    @property
    def is_constant(self) -> bool:
        """Whether the prefix of dropped text is the same for every text."""
        return self._network.function.has_null_text

    @property
    def has_table(self) -> bool:
        """Whether without text and image the network says the same for every row of a timestep."""
        network = self._network
        return self.is_constant and not (network.self_cond and network.function.reads_self_cond)

    def padding(self) -> PrefixCache:
        """The prefix of the learned padding of a network that is given no token states: one row."""
        self._forget_if_changed()
        if self._padding is None:
            self._padding = self._network.padding_prefix()
        return self._padding

    def prefix(self) -> PrefixCache:
        """The prefix of dropped text: one row."""
        self._forget_if_changed()
        if self._prefix is None:
            self._prefix = null_prefix(self._network, *self._no_text())
        return self._prefix

    def outputs(self, timesteps: list[int]) -> torch.Tensor:
        """What the network says at these timesteps without text and image: `[len(timesteps), D]`."""
        self._forget_if_changed()
        missing = [timestep for timestep in timesteps if timestep not in self._outputs]
        if missing:
            query = self._network.query
            rows = query.new_zeros(len(missing), self._network.embed_dim)
            drop = torch.ones(len(missing), dtype=torch.bool, device=query.device)
            # each as a text of its own: as draws of one text they would all look at each other, which grows as a square
            prefix = self.prefix().expand(len(missing))
            output = self._network.suffix(prefix, rows, torch.tensor(missing, device=query.device), drop_image=drop)
            self._outputs |= dict(zip(missing, output, strict=True))
        return torch.stack([self._outputs[timestep] for timestep in timesteps])

    def _no_text(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Text that is going to be dropped, of one row."""
        network, query = self._network, self._network.query
        text = query.new_zeros(1, network.text_dim)
        states = query.new_zeros(1, 1, network.token_width or 0) if network.takes_token_states else None
        return text, states

    def _weights(self) -> list[tuple[int, int]]:
        """Changes when the weights do."""
        return [
            (value.data_ptr(), 0 if value.is_inference() else value._version) for value in self._network.parameters()
        ]

    def _forget_if_changed(self) -> None:
        if self._computed_from != self._weights():
            self._padding, self._prefix, self._outputs = None, None, {}
            self._computed_from = self._weights()


def null_prefix(network: PriorNetwork, text_embed: torch.Tensor, token_states: torch.Tensor | None) -> PrefixCache:
    """The prefix of texts `[B, D]` that are dropped."""
    return network.prefix(
        text_embed, token_states, torch.ones(len(text_embed), dtype=torch.bool, device=text_embed.device)
    )


class Denoiser:
    """Estimates x0 of K draws for each of B texts; a function of x_t and timestep for one run of a sampler.

    It remembers the last estimate, for networks that are conditioned on it.

    Args:
        cache: prefix of the B texts.
        null_cache: prefix of the same texts dropped, or of one for all; not needed at scale 1.
        grid: timesteps that will be asked for.
    """

    def __init__(
        self,
        network: PriorNetwork,
        schedule: NoiseSchedule,
        diffusion: DiffusionSettings,
        normaliser: EmbeddingNormaliser,
        cache: PrefixCache,
        *,
        guidance: GuidanceName = "text",
        guidance_scale: float = 1.0,
        null: NullBranch | None = None,
        null_cache: PrefixCache | None = None,
        grid: list[int],
    ) -> None:
        self._network, self._schedule, self._diffusion, self._normaliser = network, schedule, diffusion, normaliser
        self._cache, self._scale, self._guidance = cache, guidance_scale, guidance
        self._last: torch.Tensor | None = None
        self._table: dict[int, torch.Tensor] | None = None
        if guidance_scale != 1.0:
            assert null is not None
            if guidance == "dalle2" and null.has_table:
                self._table = dict(zip(grid, null.outputs(grid), strict=True))
            else:
                null_cache = null.prefix().expand(cache.texts) if null.is_constant else null_cache
                assert null_cache is not None
                self._cache = cache.stacked_with(null_cache)

    def __call__(self, x_t: torch.Tensor, timesteps: torch.Tensor) -> Estimate:
        """x_t `[N, D]` at timesteps `[N]`, all the same -> estimates of x0."""
        output = self._output(x_t, timesteps)
        unclamped = self._schedule.to_x0(self._diffusion.prediction, output, x_t, timesteps)
        x0 = unclamped
        if self._diffusion.x0_clamp == "unit_box":
            x0 = unclamped.clamp(-1, 1)
        elif self._diffusion.x0_clamp == "sphere":
            x0 = self._normaliser.to_sphere(unclamped)
        if self._network.self_cond:
            self._last = x0
        return Estimate(x0, unclamped)

    def _output(self, x_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The network's output, guided."""
        timestep = timesteps[:1].expand(self._cache.texts)
        if self._scale == 1.0:
            return self._network.suffix(self._cache, x_t, timestep, self_cond=self._last)
        if self._table is not None:
            output = self._network.suffix(self._cache, x_t, timestep, self_cond=self._last)
            null = self._table[int(timesteps[0])]
            return null + self._scale * (output - null)
        rows = len(x_t)
        drop_image = None
        if self._guidance == "dalle2":
            drop_image = torch.arange(2 * rows, device=x_t.device) >= rows
        last = None if self._last is None else self._last.repeat(2, 1)
        both = self._network.suffix(self._cache, x_t.repeat(2, 1), timestep, drop_image=drop_image, self_cond=last)
        output, null = both.chunk(2)
        return null + self._scale * (output - null)
