"""Interface between networks and the code that uses them: objectives, samplers and priors.

`Network.prefix` encodes each text once. `Network.suffix` then predicts from the encoded texts and noisy image
embeddings, and can be called any number of times.

To add a network architecture, subclass `Network` and construct the subclass in `model/config.py`. Objectives, samplers
and `Prior` need no changes.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import nn

from .function_version import LATEST_FUNCTION, FunctionVersion
from .linear import Linear


@dataclass(frozen=True)
class Condition:
    """Text input that a prediction is conditioned on, for B captions.

    It consists of CLIP text embeddings and, if the network uses them, token states (per-token text-encoder outputs).
    """

    text_embed: torch.Tensor
    """Pooled text embeddings `[B, D]`, where D is their size. They are L2-normalised, unless the network takes raw ones
    (`Network.takes_raw_text`)."""
    token_states: torch.Tensor | None
    """Token states `[B, T, W]`: T vectors of width W per caption, padded with zeros.

    None if the network uses no token states.
    """

    def take(self, indices: torch.Tensor) -> Condition:
        """Return the condition for the captions at the given indices."""
        indices = indices.to(self.text_embed.device)
        return Condition(self.text_embed[indices], None if self.token_states is None else self.token_states[indices])


@dataclass(frozen=True)
class DrawnTexts:
    """Mapping from draws (noisy image embeddings) to the encoded texts (prefixes) that they use.

    A batch has B rows, and each row has K draws: noisy versions of its image embedding. Each of the first `texts` rows
    has its own prefix: all draws of row i use prefix i. All later rows have a dropped text, and share the prefix at
    index `texts`.
    """

    rows: int
    """Number of rows, B."""
    draws: int
    """Number of draws per row, K."""
    texts: int
    """Number of rows that have their own prefix (encoded text). All other rows share one prefix."""

    def indices(self, device: torch.device) -> torch.Tensor:
        """Return the prefix index of each draw as an int64 tensor `[B * K]`, for K draws in each of B rows."""
        return torch.arange(self.rows, device=device).clamp(max=self.texts).repeat_interleave(self.draws)


P = TypeVar("P")
"""Type variable for an implementation of `Prefix`, whose methods return objects of the same type."""


class Prefix(Protocol):
    """Encoded texts, for example a cache of attention keys and values.

    `Network.prefix` encodes texts, and `Network.suffix` predicts from the encoded texts. Each text is encoded once. The
    result is reused for every sampling step and for all draws (noisy image embeddings) of the text.
    """

    @property
    def texts(self) -> int:
        """Number of texts."""

    def take(self: P, indices: torch.Tensor) -> P:
        """Return a prefix with the texts at the given indices. An index may be repeated."""

    def expand(self: P, texts: int) -> P:
        """Return a prefix in which this prefix's single text is repeated `texts` times."""

    def stacked_with(self: P, other: P) -> P:
        """Return a prefix with the texts of this prefix followed by those of `other`.

        Both prefixes must come from the same network.
        """


class Network(nn.Module, abc.ABC):
    """Base class for networks that predict x0, eps or v from a noisy image embedding, its timestep and a text.

    x0 is the clean image embedding, eps is the noise, and v is a combination of both (see `objective/schedule.py`). The
    training settings determine which of them a network predicts.
    """

    embed_dim: int
    """Size of image embeddings, D."""
    text_dim: int
    """Size of pooled text embeddings."""
    token_width: int | None
    """Width of token states (per-token outputs of the text encoder), W; None if the network takes no token states."""
    max_text_len: int
    """Maximum number of token states per caption, T."""
    takes_token_states: bool
    """True if callers of `prefix` must pass token states."""
    takes_self_cond: bool
    """True if the network uses an earlier x0 estimate as input (Chen et al. 2022, arXiv 2208.04202)."""
    has_null_text: bool
    """True if all texts dropped for classifier-free guidance are encoded identically, regardless of their content."""
    takes_raw_text: bool = False
    """True if text embeddings must not be normalised; False if they must have norm 1."""
    function: FunctionVersion | None = FunctionVersion.parse(LATEST_FUNCTION)
    """DALLE2-pytorch release that the `dalle2-ddim` sampler reproduces for this network; None if there is none."""
    checkpoint_activations: bool = False
    """True if the backward pass recomputes each layer's activations instead of storing them."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype that input embeddings must have."""
        return next(self.parameters()).dtype

    @property
    def lacks_empty_text(self) -> bool:
        """True if texts can be dropped only after `set_empty_text`, which has not been called."""
        return False

    def set_empty_text(self, text_embed: torch.Tensor, token_states: torch.Tensor) -> None:
        """Set the text encoder's output for the empty text, if it stands for dropped texts in this network.

        The default implementation does nothing, because most networks learn vectors for dropped texts.

        Args:
            text_embed: pooled embedding `[text_dim]`, not normalised.
            token_states: token states `[T', W]` (T' states of width W), without padding.

        Raises:
            ValueError: the sizes do not fit this network.
        """

    @abc.abstractmethod
    def prefix(
        self, text_embed: torch.Tensor, token_states: torch.Tensor | None = None, drop_text: torch.Tensor | None = None
    ) -> Prefix:
        """Encode B texts. Pass the result to `suffix` to predict from these texts.

        Args:
            text_embed: pooled text embeddings `[B, text_dim]`.
            token_states: per-token outputs of the text encoder, `[B, T', W]`, padded with rows of zeros. T' may be any
                number of states per text, but only the first `max_text_len` are used. W is `token_width`. None if the
                network takes no token states.
            drop_text: `[B]` bool; True for texts to drop. Learned vectors, or the empty text, replace dropped texts.
                None drops no text.

        Raises:
            ValueError: `token_states` is None but the network takes token states, or `drop_text` is given but the
                network cannot drop texts.
        """

    @abc.abstractmethod
    def suffix(
        self,
        prefix: Prefix,
        noisy_image_embed: torch.Tensor,
        timesteps: torch.Tensor,
        *,
        drop_image: torch.Tensor | None = None,
        self_cond: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict x0, eps or v for noisy image embeddings, given encoded texts.

        Each of the B texts has K draws (noisy image embeddings), so there are N = B * K draws. In all arguments and in
        the result, the draws of a text are adjacent.

        Args:
            prefix: B texts, encoded by `prefix` of this network.
            noisy_image_embed: noisy image embeddings `[N, D]`, where D is `embed_dim`.
            timesteps: `[N]` int64. If all draws of each text share one timestep, pass `[B]` instead, which is faster.
            drop_image: `[N]` bool; True for noisy images to replace with a learned vector. None drops no image.
            self_cond: earlier estimates of x0, `[N, D]`. If None, zeros are used.

        Returns:
            The predictions, `[N, D]`.
        """

    def predict_draws(
        self,
        text_embed: torch.Tensor,
        token_states: torch.Tensor | None,
        drop_text: torch.Tensor | None,
        draws: DrawnTexts,
        noisy_image_embed: torch.Tensor,
        timesteps: torch.Tensor,
        *,
        drop_image: torch.Tensor | None = None,
        self_cond: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Encode texts, and predict x0, eps or v for all draws (noisy image embeddings) of a training batch.

        Draws of the same text may have different timesteps.

        Args:
            text_embed, token_states, drop_text: texts to encode, as for `prefix`.
            draws: mapping from each draw to the encoded text that it uses.
            noisy_image_embed, timesteps, drop_image, self_cond: one row per draw, as for `suffix`.

        Returns:
            The predictions, `[N, D]` (N draws in total, embedding size D).
        """
        texts = self.prefix(text_embed, token_states, drop_text).take(draws.indices(timesteps.device))
        return self.suffix(texts, noisy_image_embed, timesteps, drop_image=drop_image, self_cond=self_cond)

    def forward(
        self,
        noisy_image_embed: torch.Tensor,
        timesteps: torch.Tensor,
        *,
        text_embed: torch.Tensor,
        token_states: torch.Tensor | None = None,
        drop_text: torch.Tensor | None = None,
        drop_image: torch.Tensor | None = None,
        self_cond: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Encode texts, and predict x0, eps or v from one noisy image embedding per text.

        See `prefix` and `suffix` for the arguments.

        Returns:
            The predictions, `[B, D]` (B texts, embedding size D).
        """
        texts = self.prefix(text_embed, token_states, drop_text)
        return self.suffix(texts, noisy_image_embed, timesteps, drop_image=drop_image, self_cond=self_cond)

    def set_product_dtype(self, dtype: torch.dtype) -> None:
        """Convert the weights of priorkit's `Linear` layers to `dtype`, so that large matrix products use this dtype.

        Other weights keep their dtype.
        """
        for module in self.modules():
            if isinstance(module, Linear):
                module.to(dtype)

    def clear_derived(self) -> None:
        """Discard all cached values that were computed from the weights.

        Call this after weight changes that torch's version counter does not record, such as writes to `.data`.
        """
        for module in self.modules():
            if isinstance(module, Linear):
                module.clear_derived()

    def compile_layers(self) -> None:
        """Compile the network's layers with torch.compile, if the network supports it.

        The default implementation does nothing. Networks that support compilation override it.
        """
