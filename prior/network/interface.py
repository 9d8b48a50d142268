"""Network interface: everything that objectives, samplers and priors know about a network.

A network encodes texts once (`prefix`), then predicts from noisy embeddings as often as needed (`suffix`). To add a
network family, subclass `Network` and build the subclass in `model/config.py`. Objectives, samplers and `Prior` stay
unchanged.
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
    """Encoded text of B captions that a prediction is conditioned on."""

    text_embed: torch.Tensor
    """`[B, D]`, L2-normalised."""
    token_states: torch.Tensor | None
    """`[B, T, W]`, padded with zeros; None if the network uses no token states."""

    def take(self, indices: torch.Tensor) -> Condition:
        """Select captions by index."""
        indices = indices.to(self.text_embed.device)
        return Condition(self.text_embed[indices], None if self.token_states is None else self.token_states[indices])


@dataclass(frozen=True)
class DrawnTexts:
    """Assignment of text prefixes to the K draws of each of B rows.

    Row i uses prefix i if i < `texts`. All other rows share the prefix at index `texts`.
    """

    rows: int
    """B, number of rows."""
    draws: int
    """K, number of draws per row."""
    texts: int
    """Number of rows that have a separate prefix."""

    def indices(self, device: torch.device) -> torch.Tensor:
        """Return the prefix index of each draw, `[B * K]` int64."""
        return torch.arange(self.rows, device=device).clamp(max=self.texts).repeat_interleave(self.draws)


P = TypeVar("P")
"""Concrete prefix type."""


class Prefix(Protocol):
    """Encoded texts shared by all sampling steps and draws, such as a cache of keys and values."""

    @property
    def texts(self) -> int:
        """Number of texts."""

    def take(self: P, indices: torch.Tensor) -> P:
        """Select texts by index. An index may occur several times."""

    def expand(self: P, texts: int) -> P:
        """Repeat a single text `texts` times."""

    def stacked_with(self: P, other: P) -> P:
        """Append the texts of another prefix of the same length."""


class Network(nn.Module, abc.ABC):
    """Network that predicts x0, eps or v of an image embedding from its noisy version, the timestep and the text."""

    embed_dim: int
    """D, size of image embeddings."""
    text_dim: int
    """Size of pooled text embeddings."""
    token_width: int | None
    """W, width of token states; None if the network is built without token states."""
    max_text_len: int
    """T, maximum number of token states per caption."""
    takes_token_states: bool
    """True if callers must pass token states."""
    takes_self_cond: bool
    """True if the prediction depends on an earlier estimate of x0 (Chen et al. 2022, arXiv 2208.04202)."""
    has_null_text: bool
    """True if every dropped text has the same prefix, regardless of its content."""
    function: FunctionVersion = FunctionVersion.parse(LATEST_FUNCTION)
    """Release of DALLE2-pytorch whose variant of the `dalle2-ddim` sampler suits this network."""
    checkpoint_activations: bool = False
    """True if the backward pass recomputes each layer's activations instead of storing them."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the embeddings that the network takes."""
        return next(self.parameters()).dtype

    @abc.abstractmethod
    def prefix(
        self, text_embed: torch.Tensor, token_states: torch.Tensor | None = None, drop_text: torch.Tensor | None = None
    ) -> Prefix:
        """Encode B texts.

        Args:
            text_embed: `[B, text_dim]`.
            token_states: `[B, T', W]`, padded with rows of zeros and truncated to `max_text_len`. None if the network
                takes no token states.
            drop_text: `[B]` bool. Learned vectors replace the text of rows that are True. None drops no text.

        Raises:
            ValueError: token states are missing, or the network cannot drop texts.
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
        """Predict `[N, D]` for K draws of each of B encoded texts. The draws of a text are adjacent.

        Args:
            prefix: B texts, encoded by the same network.
            noisy_image_embed: `[N, D]`, where N = B * K.
            timesteps: `[N]` int64, or `[B]` if all draws of a text share a timestep, which is faster.
            drop_image: `[N]` bool. A learned vector replaces the noisy image of rows that are True.
            self_cond: `[N, D]` earlier estimates of x0. None means zeros.
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
        """Predict `[N, D]` for training, where the draws of one text have different timesteps.

        Args:
            text_embed, token_states, drop_text: passed to `prefix`.
            draws: assignment of texts to draws.
            noisy_image_embed, timesteps, drop_image, self_cond: passed to `suffix`, with N rows each.
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
        """Predict `[B, D]` for noisy embeddings `[B, D]` at timesteps `[B]`; see `prefix` and `suffix`."""
        texts = self.prefix(text_embed, token_states, drop_text)
        return self.suffix(texts, noisy_image_embed, timesteps, drop_image=drop_image, self_cond=self_cond)

    def set_product_dtype(self, dtype: torch.dtype) -> None:
        """Run all `Linear` layers in `dtype` by converting their weights. Other weights keep their dtype."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.to(dtype)

    def clear_derived(self) -> None:
        """Discard all values computed from the weights. Call this after changes that torch does not count."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.clear_derived()

    def compile_layers(self) -> None:
        """Compile the layers for training."""
