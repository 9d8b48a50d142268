"""Trained prior, which combines a network, diffusion settings and a CLIP model to sample image embeddings."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from ...pipeline.compute.settings import DeviceSettings
from ...pipeline.contract.empty_inputs import EmptyInputs
from ...pipeline.errors import InputError, SettingsError
from ...pipeline.read.dataset import EmbeddingBatch, EmbeddingDataset
from ...pipeline.settings import parse_settings
from ..network.derived import weight_sums
from ..network.interface import Condition, Network, Prefix
from ..objective.normaliser import EmbeddingNormaliser
from ..objective.schedule import NoiseSchedule, noise_schedule
from ..sampling.by_name import find_sampler
from ..sampling.guidance import Denoiser, NullBranch, null_prefix
from ..sampling.samplers import generator_noise, seeded_noise
from ..sampling.settings import MAX_SEED, GuidanceName, NormName, SamplerName, SampleSettings
from .arguments import as_tensor, check_arguments, choose_generators, expand_negatives
from .config import PriorConfig, check_sampling
from .empty import set_empty_text
from .norms import convert_norms, default_norm, require_raw
from .text_encoder import encode_empty_inputs, find_text_encoder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Dtypes for large matrix products, by name."""
SAMPLE_BATCH = 64
"""Maximum number of captions per sampling batch, so that memory use does not grow with the number of captions."""


class EncodedTexts(NamedTuple):
    """Encoded distinct texts, and which of them each of B captions uses."""

    text_embed: torch.Tensor
    """Text embeddings, one row per distinct text."""
    token_states: torch.Tensor | None
    """Token states of the distinct texts, padded with rows of zeros; None if the prior uses none."""
    rows: torch.Tensor
    """Index of the text that each caption uses, `[B]` int64."""


class Prior:
    """Trained prior that samples CLIP image embeddings from text."""

    def __init__(
        self,
        config: PriorConfig,
        network: Network,
        normaliser: EmbeddingNormaliser,
        empty: EmptyInputs | None = None,
    ) -> None:
        self.config = config
        self.network = network.eval()
        self.empty = empty
        """Outputs of the prior's CLIP model for empty inputs, not normalised; None if they are unknown."""
        set_empty_text(network, empty)
        self.normaliser = normaliser
        self.schedule: NoiseSchedule = noise_schedule(config.diffusion.noise_schedule, config.diffusion.timesteps)
        self._null = NullBranch(network)
        self._sums: list[float] | None = None

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.network.device

    @property
    def token_states_used(self) -> int:
        """Maximum number of token states per caption; 0 if the prior uses no token states."""
        return self.network.max_text_len if self.network.takes_token_states else 0

    def read(self, dataset: EmbeddingDataset, rows: np.ndarray) -> EmbeddingBatch:
        """Read rows of an embeddings folder in the form that this prior takes.

        Args:
            rows: `[B]` row numbers.

        Raises:
            InputError: the folder lacks what the prior needs, such as token states or the norms of embeddings.
        """
        self.take_empty_inputs(dataset)
        return dataset.take(
            rows, self.token_states_used, raw_text=self.network.takes_raw_text,
            raw_image=self.normaliser.takes_raw_images,
        )  # fmt: skip

    def take_empty_inputs(self, dataset: EmbeddingDataset) -> None:
        """Take over a CLIP model's outputs for empty inputs from an embeddings folder, if this prior lacks them.

        Call this only for a folder of the prior's CLIP model.

        Raises:
            InputError: the file that stores them is damaged.
        """
        if self.empty is None and (empty := dataset.empty_inputs) is not None:
            self.empty = empty
            set_empty_text(self.network, empty)
            self._null = NullBranch(self.network)

    def to(self, device: str | torch.device | None = None, dtype: str | None = None) -> Prior:
        """Move the prior to a device and set the dtype of large matrix products.

        Normalisation layers always compute in float32.

        Args:
            device: torch device; None keeps the current device.
            dtype: `float32` or `bfloat16`; None keeps the current dtype.

        Returns:
            This prior.

        Raises:
            SettingsError: the dtype is unknown, or the device is unknown or not available.
        """
        if dtype is not None and dtype not in DTYPES:
            raise SettingsError(f"dtype={dtype!r}: known are {', '.join(DTYPES)}")
        try:
            self.network.to(device)
            self.normaliser.to(device)
        except (RuntimeError, AssertionError) as error:  # torch raises either one for a missing device
            raise SettingsError(f"device={str(device)!r}: {str(error).splitlines()[0]}") from error
        if dtype is not None:
            self.network.set_product_dtype(DTYPES[dtype])
        self._null = NullBranch(self.network)
        return self

    @functools.cached_property
    def text_encoder(self) -> Any:
        """Text encoder of the CLIP model that this prior was trained with.

        Raises:
            InputError: the prior does not name its CLIP model, or the CLIP model cannot be loaded, has different
                weights than in training, or produces text embeddings of the wrong size.
        """
        if self.config.spaces is not None:
            raise InputError(
                "no CLIP was declared for this prior, so captions cannot be encoded; sample from stored embeddings of "
                f"its source {_source_name(self.config)} (text_embed=, or --embeddings)"
            )
        if not self.config.clip_settings:
            raise InputError(
                "this prior does not say which CLIP it belongs to: sample from stored text embeddings (text_embed=), "
                "or convert it again with --clip and --clip-pretrained"
            )
        device: Literal["cpu", "auto"] = "cpu" if self.device.type == "cpu" else "auto"
        encoder = find_text_encoder(
            self.config.clip_settings, self.config.clip, "this prior was trained with", DeviceSettings(device=device)
        )
        size = encoder.identity["embed_dim"]
        if size != self.network.text_dim:
            raise InputError(
                f"the CLIP {self.config.clip_settings['model']} makes text embeddings of size {size}, "
                f"this prior takes {self.network.text_dim}"
            )
        return encoder

    def sample(
        self,
        prompts: Sequence[str] | None = None,
        *,
        text_embed: torch.Tensor | npt.NDArray[Any] | None = None,
        token_states: torch.Tensor | npt.NDArray[Any] | None = None,
        num_candidates: int = 1,
        guidance_scale: float = 1.0,
        guidance: GuidanceName = "text",
        steps: int = 64,
        sampler: SamplerName = "ddim",
        seed: int = 0,
        first: int = 0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        noise: Iterable[torch.Tensor] | None = None,
        norm: NormName | None = None,
        negative_prompt: str | Sequence[str] | None = None,
    ) -> torch.Tensor:
        """Sample one image embedding for each of B captions.

        By default, the noise for a caption depends only on `seed`, `num_candidates` and the caption's index. A list of
        captions can therefore be split over several calls without changing the result; see `first`.

        Args:
            prompts: captions to encode with the prior's CLIP model. Give either `prompts` or `text_embed`.
            text_embed: text embeddings, one row per caption. They may have any norm, unless the prior takes embeddings
                that are not normalised: these must have the norms that the CLIP model gave them.
            token_states: token states (per-token text-encoder outputs) `[B, T, W]`: T states of width W per caption,
                padded with rows of zeros. Required with `text_embed` if the prior uses token states.
            num_candidates: number of embeddings to draw per caption. The one with the highest cosine similarity to the
                text is returned, or the first one if text and image embeddings are not in one space.
            guidance_scale: scale of classifier-free guidance. 1 applies no guidance, larger values amplify the effect
                of the text, and 0 ignores the text.
            guidance: kind of guidance: `text`, or `dalle2` for DALLE2-pytorch's variant, which also changes the norm of
                the samples.
            steps: number of network evaluations per sampled embedding. For priors that reproduce DALLE2-pytorch 1.10.3
                or later, `dalle2-ddim` makes one evaluation fewer.
            sampler: `ddpm`, `ddim`, `dpmsolver++`, `dalle2-ddim`, `unclip`, `unclip-ddpm` or `one-step`.
            seed: noise seed.
            first: index of this call's first caption in the whole list, counted from 0. If captions are sampled in
                several calls, pass the number of captions that earlier calls sampled.
            generator: random generator that supplies the noise, or one for each embedding to draw. If given, `seed` is
                ignored. A single one supplies the noise for 64 captions after another; for the order of diffusers with
                more captions, give one for each embedding.
            noise: tensors `[B * num_candidates, D]` to use instead of random noise, where D is the size of image
                embeddings. The rows for the candidates of a caption must be adjacent. The first tensor is the initial
                noise. Each step that adds noise takes another tensor. `ddpm` takes a tensor at every step, even at the
                last step, where the noise is multiplied by 0.
            norm: `unit` for embeddings of norm 1, or `raw` for the norms that the CLIP model would give them, which the
                decoders of diffusers need. A prior that does not predict norms scales all embeddings to the mean norm
                of its training images. None for the prior's default: `raw` if it predicts norms, otherwise `unit`,
                or what the network gives if the prior has `output_norm: none`.
            negative_prompt: caption, or one for each caption, that replaces the empty text in guidance. Guidance then
                moves samples away from it.

        Returns:
            The embeddings, one row per caption, `[B, D]` float32 on the CPU.

        Raises:
            SettingsError: a setting is out of range, or not exactly one of `prompts` and `text_embed` is given.
        """
        check_arguments(prompts, text_embed, token_states, generator, noise)
        default_norm(self.config, norm)
        if not 0 <= seed <= MAX_SEED:
            raise SettingsError(f"seed={seed}: must be from 0 to {MAX_SEED}")
        if first < 0:
            raise SettingsError(f"first={first}: must not be negative")
        if num_candidates < 1:
            raise SettingsError(f"num_candidates={num_candidates}: must be at least 1")
        values = {"sampler": sampler, "steps": steps, "guidance_scale": guidance_scale, "guidance": guidance}
        text_embed, token_states = as_tensor(text_embed), as_tensor(token_states)
        settings = parse_settings(SampleSettings, values, "sample")
        self.check(settings)
        texts: Sequence[str] | torch.Tensor = prompts if prompts is not None else text_embed  # type: ignore[assignment]
        negatives = None
        if negative_prompt is not None:
            negatives = expand_negatives(negative_prompt, len(texts), settings)
        given = iter(noise) if noise is not None else None
        batch = SAMPLE_BATCH if given is None else max(1, len(texts))  # given noise tensors cover all captions
        parts = [torch.empty(0, self.config.embed_dim)]
        for start in range(0, len(texts), batch):
            chosen = slice(start, start + batch)
            if prompts is not None:
                embed, states, rows = self._encode_distinct(prompts[chosen])
            else:
                assert text_embed is not None
                embed, states = text_embed[chosen], None if token_states is None else token_states[chosen]
                rows = torch.arange(len(embed))
            negative = None if negatives is None else self._encode_distinct(negatives[chosen])
            drawn = given
            if generator is not None:
                shape = (len(rows) * num_candidates, self.config.embed_dim)
                drawn = generator_noise(
                    shape, choose_generators(generator, chosen, num_candidates, len(texts)), self.device
                )
            if drawn is None:
                drawn = self.noise(seed, first + start, len(rows), num_candidates)
            draws = self.draw(embed, states, num_candidates, settings, drawn, norm=norm, rows=rows, negative=negative)
            parts.append(nearest_to_text(draws, embed[rows]) if self.config.compares_texts else draws[:, 0])
        return torch.cat(parts)

    def noise(self, seed: int, first: int, texts: int, draws: int) -> Iterator[torch.Tensor]:
        """Yield the noise tensors `[texts * draws, D]` that `sample` uses by default (D is the embedding size).

        Args:
            seed: noise seed.
            first: index of the first caption, as for `sample`.
            texts: number of captions.
            draws: number of candidates per caption.
        """
        return seeded_noise(seed, first, texts, draws, self.config.embed_dim, self.device)

    def check(self, settings: SampleSettings) -> list[int]:
        """Check sampling settings, and return the timesteps at which the network is evaluated.

        Raises:
            SettingsError: this prior does not support the settings.
        """
        return check_sampling(self.config.network, self.network.takes_token_states, self.config.diffusion, settings)

    @torch.inference_mode()
    def draw(
        self,
        text_embed: torch.Tensor,
        token_states: torch.Tensor | None,
        draws: int,
        settings: SampleSettings,
        noise: Iterator[torch.Tensor],
        *,
        norm: NormName | None = None,
        rows: torch.Tensor | None = None,
        negative: EncodedTexts | None = None,
    ) -> torch.Tensor:
        """Sample K embeddings of size D for each of B captions. Return all of them as `[B, K, D]` float32 on the CPU.

        Args:
            text_embed, token_states: encoded captions, as for `sample`, but as tensors.
            draws: number of embeddings per caption, K.
            settings: sampling settings.
            noise: tensors `[B * K, D]`, as for `sample`: the initial noise, then one for each step that adds noise.
            norm: norm of the embeddings, as for `sample`.
            rows: index into `text_embed` of the text of each of the B captions; None if each text is used once.
            negative: encoded negative prompts, and the index of the one that each caption uses; None for none.

        Raises:
            SettingsError: this prior does not support the settings, or a tensor has the wrong shape or is missing.
        """
        grid = self.check(settings)
        condition = self.condition(text_embed, token_states)
        batch, dim = len(text_embed) if rows is None else len(rows), self.config.embed_dim
        self._follow_weights()
        prefix = self.network.prefix(condition.text_embed, condition.token_states)
        dropped = None if settings.guidance_scale == 1.0 else self._null_prefix(condition, negative)
        if rows is not None and len(rows) != len(text_embed):
            prefix = prefix.take(rows.to(self.device))
            if dropped is not None and negative is None:
                dropped = dropped.take(rows.to(self.device))
        denoiser = Denoiser(
            self.network, self.schedule, self.config.diffusion, self.normaliser, prefix,
            guidance=settings.guidance, guidance_scale=settings.guidance_scale, null=self._null, null_prefix=dropped,
            grid=grid,
        )  # fmt: skip
        sampler = find_sampler(settings.sampler, self.network.function, self.config.diffusion.prediction)
        x0 = sampler(denoiser, self.schedule, self._checked(noise, (batch * draws, dim)), grid)
        embeds = convert_norms(self.normaliser.decode(x0), self.config, norm)
        return embeds.view(batch, draws, dim).cpu()

    def _null_prefix(self, condition: Condition, negative: EncodedTexts | None) -> Prefix | None:
        """Encode the texts of the null branch of guidance, unless all dropped texts share one cached encoding.

        Args:
            condition: the captions.
            negative: encoded negative prompts; None if guidance drops the text.

        Raises:
            SettingsError: the encoding of the empty text is needed but not known.
        """
        if negative is not None:
            texts = self.condition(negative.text_embed, negative.token_states)
            return self.network.prefix(texts.text_embed, texts.token_states).take(negative.rows.to(self.device))
        if self.network.lacks_empty_text:
            self._encode_empty_text()
        if self._null.is_constant:
            return None
        return null_prefix(self.network, condition.text_embed, condition.token_states)

    def zero_image_embed(self) -> torch.Tensor:
        """Return the raw embedding `[D]` that the prior's CLIP model gives an image of zeros.

        Kandinsky's decoders take it as the negative embedding. If the prior does not store it, it is computed.

        Raises:
            InputError: it is not stored, and the prior's CLIP model is unknown or cannot be loaded.
        """
        if self.empty is None:
            if not self.config.clip_settings:
                raise InputError(
                    "this prior does not store its CLIP's embedding of an image of zeros, nor does it name its CLIP; "
                    "convert it with --clip and --clip-pretrained"
                )
            device: Literal["cpu", "auto"] = "cpu" if self.device.type == "cpu" else "auto"
            self.empty = encode_empty_inputs(self.config.clip_settings, self.config.clip, DeviceSettings(device=device))
        return torch.from_numpy(self.empty.image_embed)

    def _encode_empty_text(self) -> None:
        """Give the network the encoding of the empty text, computed with the prior's CLIP model."""
        try:
            text_embed, states = self.encode_text([""])
        except InputError as error:
            raise SettingsError(
                f"guidance compares with the empty text, whose encoding this prior does not store ({error}); use "
                "guidance_scale=1 or fix the CLIP"
            ) from error
        assert states is not None
        self.network.set_empty_text(text_embed[0], states[0])
        self._null = NullBranch(self.network)

    def _follow_weights(self) -> None:
        """Discard cached values that depend on the weights, if the weights have changed since the last call.

        A change is detected by comparing the sum of each weight tensor with its previous sum.
        """
        sums = weight_sums(self.network)
        if sums != self._sums:
            self._sums = sums
            self._null = NullBranch(self.network)
            self.network.clear_derived()

    def _checked(self, noise: Iterator[torch.Tensor], shape: tuple[int, int]) -> Iterator[torch.Tensor]:
        """Yield each noise tensor as float32 on this prior's device, after checking its shape.

        If `init_clamp` is set, each row of the first tensor (the initial noise) is rescaled to the norm that the
        normaliser gives to image embeddings.

        Raises:
            SettingsError: a tensor has the wrong shape, or the sampler needs more tensors than `noise` yields.
        """
        for index, value in enumerate(noise):
            if value.shape != shape:
                raise SettingsError(f"noise number {index} has shape {list(value.shape)}, needed is {list(shape)}")
            value = value.to(self.device, torch.float32)
            if index == 0 and self.config.diffusion.init_clamp:
                value = F.normalize(value, dim=-1) * self.normaliser.radius
            yield value
        raise SettingsError("noise ended before the sampler did; it takes one tensor, and one for each noisy step")

    def condition(self, text_embed: torch.Tensor, token_states: torch.Tensor | None) -> Condition:
        """Check text inputs, and return them in the form that the network expects: on the prior's device, as float32.

        Args:
            text_embed: text embeddings of B captions, `[B, text_dim]`. They are scaled to norm 1, unless the network
                takes embeddings that are not normalised.
            token_states: token states (per-token text-encoder outputs) `[B, T, W]`: T states of width W per caption.
                They are ignored if the prior uses none.

        Raises:
            SettingsError: a shape does not fit this prior, the prior needs token states and `token_states` is None, or
                it needs embeddings that are not normalised and all have norm 1.
        """
        if text_embed.ndim != 2 or text_embed.shape[1] != self.network.text_dim:
            raise SettingsError(
                f"text_embed has shape {list(text_embed.shape)}, this prior takes [B, {self.network.text_dim}]"
            )
        text = text_embed.float().to(self.device)
        if self.network.takes_raw_text:
            require_raw(text)
        else:
            text = F.normalize(text, dim=-1)
        if not self.network.takes_token_states:
            return Condition(text, None)
        if token_states is None:
            raise SettingsError(
                "this prior is conditioned on token states: give token_states in addition to text_embed"
            )
        width = self.config.token_width
        if token_states.ndim != 3 or (token_states.shape[0], token_states.shape[2]) != (len(text), width):
            raise SettingsError(
                f"token_states have shape {list(token_states.shape)}, this prior takes [{len(text)}, T, {width}]"
            )
        return Condition(text, token_states.float().to(self.device))

    def _encode_distinct(self, prompts: Sequence[str]) -> EncodedTexts:
        """Encode each distinct caption once."""
        distinct = list(dict.fromkeys(prompts))
        index = {prompt: number for number, prompt in enumerate(distinct)}
        rows = torch.tensor([index[prompt] for prompt in prompts], dtype=torch.int64)
        return EncodedTexts(*self.encode_text(distinct), rows)

    def encode_text(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encode captions with the prior's CLIP model.

        Returns:
            Text embeddings, one row for each of B captions, and token states (per-token text-encoder outputs)
            `[B, T, W]`: T states of width W per caption, padded with rows of zeros. The second value is None if the
            prior uses no token states.
        """
        uses_tokens = self.network.takes_token_states
        text = self.text_encoder.encode_texts(prompts, token_states=uses_tokens)
        if not uses_tokens:
            return text.text_embed, None
        rows = torch.split(text.token_states, text.lengths)
        return text.text_embed, torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def _source_name(config: PriorConfig) -> str:
    """Return the name of a prior's source, for messages."""
    return repr((config.spaces or {}).get("source", {}).get("name", ""))


def nearest_to_text(draws: torch.Tensor, text_embed: torch.Tensor) -> torch.Tensor:
    """Select the best of K sampled embeddings for each text: the one with the highest cosine similarity to the text.

    If text and image embeddings have different sizes, select the first sampled embedding.

    Args:
        draws: K sampled embeddings of size D for each of B texts, `[B, K, D]`.
        text_embed: text embeddings, one per text.

    Returns:
        The selected embeddings, `[B, D]`.
    """
    if draws.shape[1] == 1 or draws.shape[-1] != text_embed.shape[-1]:
        return draws[:, 0]
    cosine = F.cosine_similarity(draws, text_embed.to(draws)[:, None], dim=-1)
    return draws[torch.arange(len(draws)), cosine.argmax(dim=1)]
