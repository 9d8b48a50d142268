"""A trained prior: network, diffusion and the CLIP it belongs to, in one object that samples."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from typing_extensions import Self

from ..pipeline.config import Settings
from ..pipeline.errors import InputError, SettingsError
from .config import DiffusionSettings, NetworkSettings, SamplerName
from .diffusion import Condition, to_network_scale
from .network import PrefixCache, PriorNetwork
from .sample import SAMPLERS, gaussian_noise, guided
from .schedule import NoiseSchedule, noise_schedule


class PriorConfig(Settings):
    """What `config.json` of a prior's folder says: enough to build the network and find its CLIP."""

    embed_dim: int = Field(ge=1)
    """Size of image and text embeddings."""
    token_width: int | None = Field(ge=1)
    """Width of token states; null where the prior uses none."""
    network: NetworkSettings
    """The network."""
    diffusion: DiffusionSettings
    """The diffusion."""
    clip: dict[str, Any]
    """Identity of the CLIP that made the embeddings it was trained on."""
    clip_settings: dict[str, Any]
    """Where that CLIP is to be had."""

    @model_validator(mode="after")
    def _token_states_have_a_width(self) -> Self:
        if self.network.max_text_len and self.token_width is None:
            raise ValueError(f"network.max_text_len={self.network.max_text_len} needs a token_width")
        return self


def build_network(config: PriorConfig) -> PriorNetwork:
    """A network with random weights."""
    return PriorNetwork(embed_dim=config.embed_dim, token_width=config.token_width, **config.network.model_dump())


class Prior:
    """Samples CLIP image embeddings from text."""

    def __init__(self, config: PriorConfig, network: PriorNetwork) -> None:
        self.config = config
        self.network = network.eval()
        self.schedule: NoiseSchedule = noise_schedule(config.diffusion.noise_schedule, config.diffusion.timesteps)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @functools.cached_property
    def text_encoder(self) -> Any:
        """The CLIP whose text this prior understands, checked against the weights it was trained with."""
        from ..pipeline.clip import load_encoder
        from ..pipeline.config import ClipSettings, EmbedSettings
        from ..pipeline.device import resolve

        clip = ClipSettings(**self.config.clip_settings)
        encoder = load_encoder(resolve(EmbedSettings(clip=clip, dtype=self.config.clip["dtype"]), "embed"))
        if encoder.identity["weights_sha256"] != self.config.clip["weights_sha256"]:
            raise InputError(f"the CLIP {clip.model} here has other weights than the one this prior was trained with")
        return encoder

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[str] | None = None,
        *,
        text_embed: torch.Tensor | None = None,
        token_states: torch.Tensor | None = None,
        num_candidates: int = 1,
        guidance_scale: float = 1.0,
        steps: int = 64,
        sampler: SamplerName = "ddim",
        seed: int = 0,
        generator: torch.Generator | None = None,
        noise: Iterator[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Draw one image embedding for each caption: `[B, D]` float32, L2-normalised.

        Args:
            prompts: captions, encoded by the prior's own CLIP; or give `text_embed`.
            text_embed: `[B, D]` text embeddings of any norm.
            token_states: `[B, T, W]` token states, rows of zeros being padding, if the prior uses them.
            num_candidates: draws for each caption, of which the one nearest to the text by cosine is returned.
            guidance_scale: 1 follows the text as trained, above 1 exaggerates it.
            steps: network evaluations.
            seed: seed of the noise; `generator` takes its place if given.
            noise: tensors `[B * num_candidates, D]` in place of drawn noise, consumed as `sample.py` says.

        Raises:
            SettingsError: a setting is out of range, or neither or both of prompts and text_embed are given.
        """
        if (prompts is None) == (text_embed is None):
            raise SettingsError("give either prompts or text_embed")
        if num_candidates < 1:
            raise SettingsError(f"num_candidates={num_candidates}: must be at least 1")
        if prompts is not None:
            text_embed, token_states = self.encode_text(list(prompts))
        assert text_embed is not None
        draws = self.draw(
            text_embed, token_states, num_candidates, guidance_scale, steps, sampler,
            noise=noise, generator=generator or torch.Generator().manual_seed(seed),
        )  # fmt: skip
        cosine = torch.einsum("bkd,bd->bk", draws, F.normalize(text_embed.to(draws), dim=-1))
        return draws[torch.arange(len(draws)), cosine.argmax(dim=1)]

    @torch.inference_mode()
    def draw(
        self,
        text_embed: torch.Tensor,
        token_states: torch.Tensor | None,
        draws: int,
        guidance_scale: float,
        steps: int,
        sampler: SamplerName,
        *,
        noise: Iterator[torch.Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """K draws for each of B captions: `[B, K, D]` on the CPU, L2-normalised; arguments as for `sample`."""
        if sampler not in SAMPLERS:
            raise SettingsError(f"sampler={sampler!r}: known are {', '.join(SAMPLERS)}")
        if not (math.isfinite(guidance_scale) and guidance_scale >= 0):
            raise SettingsError(f"guidance_scale={guidance_scale}: must be 0 or more")
        if guidance_scale != 1.0 and self.config.diffusion.text_drop == 0:
            raise SettingsError(f"guidance_scale={guidance_scale}: this prior was trained without dropping text; use 1")
        if not 1 <= steps <= len(self.schedule):
            raise SettingsError(f"steps={steps}: this prior is sampled in 1 to {len(self.schedule)} steps")
        batch, dim = text_embed.shape
        if dim != self.config.embed_dim:
            raise SettingsError(f"text_embed has size {dim}, this prior works on embeddings of {self.config.embed_dim}")
        condition = self.condition(text_embed, token_states)
        cache = self.network.prefix(condition.text_embed, condition.token_states).repeat(draws)
        null_cache = None if guidance_scale == 1.0 else self._null_cache(batch * draws)
        estimate = guided(
            self.network, self.schedule, self.config.diffusion.prediction, cache, null_cache, guidance_scale
        )
        if noise is None:
            noise = gaussian_noise((batch * draws, dim), generator or torch.Generator().manual_seed(0), self.device)
        x0 = SAMPLERS[sampler](estimate, self.schedule, iter(noise), steps)
        return F.normalize(x0.float(), dim=-1).view(batch, draws, dim).cpu()

    def condition(self, text_embed: torch.Tensor, token_states: torch.Tensor | None) -> Condition:
        """Stored or encoded text as the network takes it, on its device."""
        uses_tokens = self.config.network.max_text_len > 0
        if uses_tokens and token_states is None:
            raise SettingsError("this prior is conditioned on token states: give token_states besides text_embed")
        states = token_states.float().to(self.device) if uses_tokens and token_states is not None else None
        return Condition(to_network_scale(text_embed).to(self.device), states)

    def encode_text(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Captions -> text embeddings `[B, D]` and, if the prior uses them, token states `[B, T, W]`."""
        uses_tokens = self.config.network.max_text_len > 0
        text = self.text_encoder.encode_texts(prompts, token_states=uses_tokens)
        if not uses_tokens:
            return text.text_embed, None
        rows = torch.split(text.token_states, text.lengths)
        return text.text_embed, torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)

    def _null_cache(self, rows: int) -> PrefixCache:
        """The prefix of dropped text, one constant for the checkpoint."""
        text = torch.zeros(1, self.config.embed_dim, device=self.device)
        states = None
        if self.config.network.max_text_len:
            states = torch.zeros(1, 1, self.config.token_width or 0, device=self.device)
        drop = torch.ones(1, dtype=torch.bool, device=self.device)
        return self.network.prefix(text, states, drop).repeat(rows)
