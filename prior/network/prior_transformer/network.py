"""Network that computes the same function as `PriorTransformer` in diffusers, with the weights' names of diffusers.

The tokens are `[token states, text embedding, timestep, noisy image, query]`, with a causal mask. The prediction is
read at the query. The text comes first and never attends to the timestep or the noisy image. `prefix` can therefore
cache the text's keys and values, and `suffix` can predict from the cache. Padding never affects a prediction, so it is
left out. Positions are numbered as if each text had its maximum number of token states.

Dimensions: B texts, K draws per text, N = B * K draws in total, T token states, W their width, D embedding size, S size
of text embeddings, C stream width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..interface import DrawnTexts, Network, Prefix
from ..linear import Linear
from .layers import Block, LayerNorm, encode_texts, run_cached, run_training
from .prefix import TextPrefix, padding_mask
from .settings import PriorTransformerSettings

_ACTIVATIONS = {"silu": nn.SiLU, "swish": nn.SiLU, "mish": nn.Mish, "gelu": nn.GELU, "relu": nn.ReLU}
_MAX_PERIOD = 10_000.0
"""Ratio of the longest to the shortest period of the sinusoids that encode a timestep."""


class TimeEmbedding(nn.Module):
    """MLP that maps sinusoids of a timestep to the timestep's token."""

    def __init__(self, width: int, inner: int, activation: str) -> None:
        super().__init__()
        self.width = width
        self.linear_1 = nn.Linear(width, inner)
        self.act = _ACTIVATIONS[activation]()
        self.linear_2 = nn.Linear(inner, width)

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Map N int64 timesteps, `[N]`, to `[N, C]`."""
        half = self.width // 2
        steps = torch.arange(half, device=timesteps.device, dtype=torch.float32)
        angles = timesteps.float()[:, None] * torch.exp(-math.log(_MAX_PERIOD) * steps / half)
        waves = F.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, self.width - 2 * half))
        token: torch.Tensor = self.linear_2(self.act(self.linear_1(waves.to(self.linear_1.weight.dtype))))
        return token


class PriorTransformer(Network):
    """Causal transformer of diffusers, which predicts x0 from a noisy image embedding, the timestep and the text.

    Text embeddings are not normalised. The CLIP's encoding of the empty text stands for a dropped text.

    Args:
        embed_dim: size of image embeddings, D.
        text_dim: size of text embeddings, S; None for D.
        token_width: width of token states, W; None for D.
        settings: size and structure of the network.
    """

    def __init__(
        self, *, embed_dim: int, text_dim: int | None, token_width: int | None, settings: PriorTransformerSettings
    ) -> None:
        super().__init__()
        self.embed_dim, self.text_dim, self.token_width = embed_dim, text_dim or embed_dim, token_width or embed_dim
        self.max_text_len, self.width = settings.num_embeddings, settings.width
        self.takes_token_states, self.takes_self_cond = True, False
        self.has_null_text, self.takes_raw_text = True, True
        self.function = None
        self.time_token = settings.time_token
        width, places = self.width, settings.num_embeddings + settings.additional_embeddings
        self.positional_embedding = nn.Parameter(torch.zeros(1, places, width))
        self.prd_embedding = nn.Parameter(torch.zeros(1, 1, width))
        if self.time_token:
            inner = settings.time_embed_dim or width
            self.time_embedding = TimeEmbedding(width, inner, settings.time_embed_act_fn)
        self.proj_in = nn.Linear(embed_dim, width)
        self.embedding_proj_norm = LayerNorm(self.text_dim) if settings.embedding_proj_norm_type else nn.Identity()
        self.embedding_proj = nn.Linear(self.text_dim, width)
        self.encoder_hidden_states_proj = nn.Linear(self.token_width, width)
        self.norm_in = LayerNorm(width) if settings.norm_in_type else nn.Identity()
        self.transformer_blocks = nn.ModuleList(
            Block(width, settings.num_attention_heads, settings.dropout) for _ in range(settings.num_layers)
        )
        self.norm_out = LayerNorm(width)
        self.proj_to_clip_embeddings = Linear(width, embed_dim, bias=True)
        self.empty_text_embed: torch.Tensor
        self.empty_token_states: torch.Tensor
        self.register_buffer("empty_text_embed", torch.zeros(self.text_dim), persistent=False)
        self.register_buffer("empty_token_states", torch.zeros(0, self.token_width), persistent=False)

    @property
    def lacks_empty_text(self) -> bool:
        """True until `set_empty_text` has been called. Texts cannot be dropped before."""
        return len(self.empty_token_states) == 0

    def set_empty_text(self, text_embed: torch.Tensor, token_states: torch.Tensor) -> None:
        """Set the CLIP's encoding of the empty text, which replaces dropped texts; see `Network.set_empty_text`."""
        sizes = (self.text_dim,), (min(len(token_states), self.max_text_len), self.token_width)
        given = text_embed, token_states[: self.max_text_len]
        if tuple(tuple(part.shape) for part in given) != sizes or len(token_states) == 0:
            raise ValueError(
                f"the encoding of the empty text has sizes {list(text_embed.shape)} and {list(token_states.shape)}; "
                f"this network takes [{self.text_dim}] and [T, {self.token_width}]"
            )
        self.empty_text_embed, self.empty_token_states = (part.to(self.device, self.dtype) for part in given)

    def prefix(
        self, text_embed: torch.Tensor, token_states: torch.Tensor | None = None, drop_text: torch.Tensor | None = None
    ) -> TextPrefix:
        """Encode B texts, and return their attention keys and values; see `Network.prefix`."""
        tokens, mask = self._text_tokens(text_embed, token_states, drop_text)
        return encode_texts(self.norm_in(tokens), mask, self._layers())

    def suffix(
        self,
        prefix: Prefix,
        noisy_image_embed: torch.Tensor,
        timesteps: torch.Tensor,
        *,
        drop_image: torch.Tensor | None = None,
        self_cond: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict x0 for noisy image embeddings, using the cached texts; see `Network.suffix`."""
        assert isinstance(prefix, TextPrefix)
        assert drop_image is None
        draws = self._draw_tokens(noisy_image_embed)  # (N, 2, C)
        time = self._time_tokens(timesteps)  # (texts or N, 0 or 1, C)
        shared = time.shape[1]
        if len(timesteps) != prefix.texts:
            draws, shared = torch.cat([time, draws], dim=1), 0
        stream = draws.reshape(prefix.texts, -1, self.width)
        if shared:
            stream = torch.cat([time, stream], dim=1)
        return self._prediction(run_cached(self.norm_in(stream), prefix, shared, draws.shape[1], self._layers()))

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
        """Predict x0 for a training batch, without a cache; see `Network.predict_draws`."""
        assert drop_image is None
        texts, mask = self._text_tokens(text_embed, token_states, drop_text)
        suffixes = torch.cat([self._time_tokens(timesteps), self._draw_tokens(noisy_image_embed)], dim=1)
        checkpointed = self.checkpoint_activations and torch.is_grad_enabled()
        texts, suffixes = self.norm_in(texts), self.norm_in(suffixes)
        return self._prediction(run_training(texts, mask, suffixes, draws, self._layers(), checkpointed=checkpointed))

    def compile_layers(self) -> None:
        """Compile the attention and the feed-forward part of each layer, for any number of tokens."""
        for layer in self._layers():
            layer.add_feed_forward = torch.compile(layer.add_feed_forward, dynamic=True)  # type: ignore[method-assign]
            layer.attn1.attend = torch.compile(layer.attn1.attend, dynamic=True)  # type: ignore[method-assign]

    def _layers(self) -> list[Block]:
        return list(self.transformer_blocks)  # type: ignore[arg-type]

    def _text_tokens(
        self, text_embed: torch.Tensor, token_states: torch.Tensor | None, drop_text: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens of B texts, `[B, P, C]`, and the attention bias of their positions, `[B, P]`.

        P is the number of token states of the longest text, plus 1 for the text embedding.
        """
        if token_states is None:
            raise ValueError("this prior is conditioned on token states: give token_states")
        states = token_states[:, : self.max_text_len]
        if drop_text is not None:
            text_embed, states = self._replace_dropped(text_embed, states, drop_text)
        given = (states != 0).any(dim=-1)  # (B, T)
        longest = int(given.any(dim=0).nonzero().max()) + 1 if given.any() else 0
        states, given = states[:, :longest], given[:, :longest]
        text = self.embedding_proj(self.embedding_proj_norm(text_embed))[:, None]  # (B, 1, C)
        positions = self.positional_embedding
        tokens = torch.cat(
            [
                self.encoder_hidden_states_proj(states) + positions[:, :longest],
                text + positions[:, self.max_text_len, None],
            ],
            dim=1,
        )
        return tokens, padding_mask(F.pad(given, (0, 1), value=True), tokens.dtype)

    def _replace_dropped(
        self, text_embed: torch.Tensor, states: torch.Tensor, drop_text: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return text embeddings `[B, S]` and token states `[B, T, W]` with the empty text for dropped texts."""
        if self.lacks_empty_text:
            raise ValueError("the CLIP's encoding of the empty text is not known: call set_empty_text first")
        length = max(states.shape[1], len(self.empty_token_states))
        empty = F.pad(self.empty_token_states, (0, 0, 0, length - len(self.empty_token_states)))
        states = F.pad(states, (0, 0, 0, length - states.shape[1]))
        return (
            torch.where(drop_text[:, None], self.empty_text_embed.to(text_embed.dtype), text_embed),
            torch.where(drop_text[:, None, None], empty.to(states.dtype), states),
        )

    def _time_tokens(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the timestep's token for each of N timesteps, `[N, 1, C]`; `[N, 0, C]` for a network without one."""
        if not self.time_token:
            return self.prd_embedding.new_zeros(len(timesteps), 0, self.width)
        token: torch.Tensor = self.time_embedding(timesteps)
        return token[:, None] + self.positional_embedding[:, self.max_text_len + 1, None]

    def _draw_tokens(self, noisy_image_embed: torch.Tensor) -> torch.Tensor:
        """Return the tokens of N noisy image embeddings and their queries, `[N, 2, C]`."""
        image = self.proj_in(noisy_image_embed)[:, None]
        query = self.prd_embedding.expand(len(noisy_image_embed), -1, -1)
        return torch.cat([image, query.to(image.dtype)], dim=1) + self.positional_embedding[:, -2:]

    def _prediction(self, last: torch.Tensor) -> torch.Tensor:
        """Return the predictions `[N, D]` for outputs of the last layer at the query, `[N, C]`."""
        prediction: torch.Tensor = self.proj_to_clip_embeddings(self.norm_out(last))
        return prediction if prediction.dtype == torch.float64 else prediction.float()
