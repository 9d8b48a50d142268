"""DALLE2-pytorch's prior network: a causal transformer over `[token states, pooled text, time, noisy image, query]`.

The network computes the same function as `DiffusionPriorNetwork` in each supported DALLE2-pytorch release (see
`function_version.py`). Unlike in DALLE2-pytorch, the widths of the token stream, token states (per-token text-encoder
outputs) and text embeddings can differ from the size of image embeddings.

The prediction is read at the last token. The text comes first and never attends to the timestep or the noisy image.
`prefix` can therefore cache the text's keys and values, and `suffix` can predict from the cache. A sampler calls
`prefix` once, and `suffix` once per step.

Dimensions: B texts, K draws per text, N = B * K draws in total, T token states, D embedding size, C stream width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .cache import PrefixCache
from .derived import Derived
from .function_version import LATEST_FUNCTION, FunctionVersion
from .interface import DrawnTexts, Network, Prefix
from .layers import Attention, Blocks, FeedForward, Layer, LayerNorm, fill_cache, join, run_cached, run_training
from .linear import Linear
from .positions import PositionEncoding, Positions
from .tokens import TimeTokens, Tokens


class PriorNetwork(Network):
    """Causal transformer that predicts x0, eps or v from a noisy image embedding, the timestep and the text.

    Args:
        embed_dim: size of image embeddings, D.
        text_dim: size of pooled text embeddings; None for D.
        token_width: width of token states (per-token text-encoder outputs), W; None if the network takes no token
            states.
        width: width of the token stream, C. In DALLE2-pytorch, C equals D.
        depth: number of layers.
        heads: number of attention heads.
        dim_head: width of an attention head.
        ff_mult: inner width of the feed-forward layers, as a multiple of C.
        attn_dropout: dropout rate of attention weights.
        ff_dropout: dropout rate inside the feed-forward layers.
        max_text_len: number of token states per text, T; 0 for none. Learned vectors replace missing token states.
        num_timesteps: number of learned timestep embeddings. If None, a small MLP computes timestep embeddings from
            sinusoids.
        num_time_embeds: number of tokens that represent the timestep.
        num_image_embeds: number of tokens that represent the noisy image embedding.
        num_text_embeds: number of tokens that represent the pooled text embedding.
        self_cond: add a token for the previous x0 estimate (Chen et al. 2022, arXiv 2208.04202).
        rotary_emb: use rotary position embedding.
        norm_in: normalise the tokens before the first layer.
        norm_out: normalise the prediction after the last layer.
        final_proj: project the prediction to size D. If false, `width` must equal D.
        normformer: add a norm inside the feed-forward layers.
        function_version: DALLE2-pytorch release that the network reproduces.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        text_dim: int | None = None,
        token_width: int | None,
        width: int,
        depth: int,
        heads: int,
        dim_head: int = 64,
        ff_mult: float = 4,
        attn_dropout: float = 0.0,
        ff_dropout: float = 0.0,
        max_text_len: int = 0,
        num_timesteps: int | None = None,
        num_time_embeds: int = 1,
        num_image_embeds: int = 1,
        num_text_embeds: int = 1,
        self_cond: bool = False,
        rotary_emb: bool = True,
        norm_in: bool = False,
        norm_out: bool = True,
        final_proj: bool = True,
        normformer: bool = False,
        function_version: str = LATEST_FUNCTION,
    ) -> None:
        super().__init__()
        self.function: FunctionVersion = FunctionVersion.parse(function_version)
        if width != embed_dim and not final_proj:
            raise ValueError(f"final_proj=False needs a width ({width}) equal to the embedding's size ({embed_dim})")
        if self_cond and not self.function.takes_self_cond:
            raise ValueError(f"self_cond=True: dalle2-pytorch {function_version} had none")
        self.embed_dim, self.width, self.max_text_len = embed_dim, width, max_text_len
        self.text_dim, self.token_width = text_dim or embed_dim, token_width
        self.takes_self_cond = self_cond and self.function.reads_self_cond
        self.has_self_cond_token = self_cond
        self.has_null_text = self.function.has_null_text
        self.takes_token_states = max_text_len > 0 and token_width is not None
        self.to_text = Tokens(self.text_dim, width, num_text_embeds)
        self.to_image = Tokens(embed_dim, width, num_image_embeds)
        self.to_time = TimeTokens(width, num_time_embeds, num_timesteps, self.function.real_timesteps)
        if self.takes_token_states:
            assert token_width is not None
            self.to_token_states = Tokens(token_width, width, 1)
        if self.takes_self_cond:
            self.to_self_cond = Tokens(embed_dim, width, 1)
        self.query = nn.Parameter(torch.randn(width))
        # learned vectors that replace missing token states and the token states of dropped texts
        self.null_token_states = nn.Parameter(torch.randn(max_text_len, width))
        if self.function.has_null_tokens:
            self.null_text = nn.Parameter(torch.randn(num_text_embeds, width))
            self.null_image = nn.Parameter(torch.randn(width))
        cosine = self.function.cosine_attention
        self.norm_in = LayerNorm(width) if norm_in else nn.Identity()
        self.positions = PositionEncoding(heads, dim_head, rotary=rotary_emb, cosine=cosine)
        self.attention = nn.ModuleList(
            Attention(width, heads=heads, head_width=dim_head, dropout=attn_dropout, cosine=cosine)
            for _ in range(depth)
        )
        self.feed_forward = nn.ModuleList(FeedForward(width, ff_mult, ff_dropout, normformer) for _ in range(depth))
        self.norm_out = LayerNorm(width, stable=True) if norm_out else nn.Identity()
        self.to_embed = Linear(width, embed_dim) if final_proj else nn.Identity()
        self._cached_padding = Derived[PrefixCache]()

    @property
    def pads_only(self) -> bool:
        """True if the positions for token states always hold learned padding, which is the same for every text.

        This is the case if `max_text_len` is above 0, but the network takes no token states as input.
        """
        return self.max_text_len > 0 and not self.takes_token_states

    def prefix(
        self, text_embed: torch.Tensor, token_states: torch.Tensor | None = None, drop_text: torch.Tensor | None = None
    ) -> PrefixCache:
        """Encode B texts, and return a cache of their attention keys and values; see `Network.prefix`."""
        tokens = self._prefix_tokens(text_embed, token_states, drop_text)
        return self._fill_cache(tokens, self._padding() if self.pads_only else None)

    def suffix(
        self,
        prefix: Prefix,
        noisy_image_embed: torch.Tensor,
        timesteps: torch.Tensor,
        *,
        drop_image: torch.Tensor | None = None,
        self_cond: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict x0, eps or v for noisy image embeddings, using the cache that `prefix` returned for their texts.

        See `Network.suffix` for the arguments and the result.
        """
        assert isinstance(prefix, PrefixCache)
        tokens, lengths = self._suffix_tokens(prefix.texts, noisy_image_embed, timesteps, drop_image, self_cond)
        if lengths not in prefix.positions:
            prefix.positions[lengths] = self._positions(prefix.tokens, *lengths)
        stream = run_cached(self.norm_in(tokens), prefix.positions[lengths], prefix, self._layers())
        return self._prediction(stream, lengths)

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
        """Predict x0, eps or v for a training batch; see `Network.predict_draws`.

        Each layer processes the tokens of all texts and draws in one call, so each weight gradient is computed only
        once. No cache is used.
        """
        text = self._prefix_tokens(text_embed, token_states, drop_text)
        suffixes, lengths = self._suffix_tokens(len(timesteps), noisy_image_embed, timesteps, drop_image, self_cond)
        tokens, positions, padding = [text, suffixes], [], 0
        if self.pads_only:
            padding = self.max_text_len
            tokens.insert(0, self.null_token_states[None])
            positions.append(self._positions(0, 0, 1, padding))
        positions.append(self._positions(padding, 0, 1, text.shape[1]))
        positions.append(self._positions(padding + text.shape[1], *lengths))
        blocks = Blocks([(len(block), block.shape[1]) for block in tokens], positions, draws)
        checkpointed = self.checkpoint_activations and torch.is_grad_enabled()
        stream = run_training(self.norm_in(join(tokens)), blocks, self._layers(), checkpointed=checkpointed)
        return self._prediction(stream, lengths)

    def clear_derived(self) -> None:
        """Discard the packed weights and the cached padding; see `Network.clear_derived`."""
        super().clear_derived()
        self._cached_padding.clear()

    def compile_layers(self) -> None:
        """Compile each layer separately, so that the compile time does not depend on the depth.

        The layers are compiled for dynamic shapes. Texts are dropped at random for classifier-free guidance, so the
        number of encoded texts differs between training steps.
        """
        for attention, feed_forward in self._layers():
            attention.compile(dynamic=True)
            attention.forward_cached = torch.compile(attention.forward_cached, dynamic=True)  # type: ignore[method-assign]
            feed_forward.compile(dynamic=True)

    def _layers(self) -> list[Layer]:
        return list(zip(self.attention, self.feed_forward, strict=True))  # type: ignore[arg-type]

    def _padding(self) -> PrefixCache:
        """Return the keys and values of the learned padding, as a single row that all texts share."""
        if not torch.is_inference_mode_enabled():
            return self._fill_cache(self.null_token_states[None], None)
        weights = list(self.parameters())
        return self._cached_padding.get(weights, lambda: self._fill_cache(self.null_token_states[None], None))

    def _fill_cache(self, tokens: torch.Tensor, before: PrefixCache | None) -> PrefixCache:
        """Run the layers on new tokens, and return a cache of the positions in `before`, followed by the new tokens.

        Args:
            tokens: new tokens `[B, L, C]`: L tokens for each of B texts, stream width C.
            before: cache with a single row of earlier tokens, which precedes the new tokens of every text. None if
                there are no earlier tokens.
        """
        positions = self._positions(0 if before is None else before.tokens, 0, 1, tokens.shape[1])
        return fill_cache(self.norm_in(tokens), positions, before, self._layers())

    def _prediction(self, stream: torch.Tensor, lengths: tuple[int, int, int]) -> torch.Tensor:
        """Compute the prediction for each draw from the last layer's output at the draw's last token.

        Args:
            stream: output of the last layer, `[texts, L, C]`: L tokens per text (all draws of the text concatenated),
                stream width C.
            lengths: the three lengths from `_suffix_tokens`, which describe the layout of the L tokens.

        Returns:
            The predictions, `[N, D]` (N draws in total, embedding size D).
        """
        shared, _, tokens = lengths
        last = stream[:, shared:].reshape(-1, tokens, self.width)[:, -1]  # (N, C)
        prediction: torch.Tensor = self.to_embed(self.norm_out(last))
        return prediction if prediction.dtype == torch.float64 else prediction.float()

    def _prefix_tokens(
        self, text_embed: torch.Tensor, token_states: torch.Tensor | None, drop_text: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the tokens of B texts, `[B, P, C]` (P tokens per text, stream width C).

        If the network takes token states, their padded tokens come first. The tokens of the pooled text embedding
        follow.
        """
        if drop_text is not None and not self.function.has_null_tokens:
            raise ValueError(f"the function of dalle2-pytorch {self.function} cannot drop the text")
        text: torch.Tensor = self.to_text(text_embed)  # (B, num_text_embeds, C)
        if drop_text is not None and self.function.has_null_text:
            text = torch.where(drop_text[:, None, None], self.null_text.to(text.dtype), text)
        if not self.takes_token_states:
            return text
        if token_states is None:
            raise ValueError("this prior is conditioned on token states: give token_states")
        return torch.cat([self._token_states(token_states, drop_text), text], dim=1)

    def _suffix_tokens(
        self,
        texts: int,
        noisy_image_embed: torch.Tensor,
        timesteps: torch.Tensor,
        drop_image: torch.Tensor | None,
        self_cond: torch.Tensor | None,
    ) -> tuple[torch.Tensor, tuple[int, int, int]]:
        """Return the tokens that follow each text, and three lengths that describe their layout.

        The tokens have the shape `[texts, L, C]`: L tokens per text, with all draws (noisy image embeddings) of the
        text concatenated, and stream width C. The lengths are:

        - the number of tokens that all draws of a text share. If the draws have the same timestep, these are the
          timestep tokens; otherwise, the number is 0
        - the number of draws per text
        - the number of other tokens per draw
        """
        image = self.to_image(noisy_image_embed)  # (N, num_image_embeds, C)
        if drop_image is not None:
            image = torch.where(drop_image[:, None, None], self.null_image.to(image.dtype), image)
        if self_cond is None:
            self_cond = torch.zeros_like(noisy_image_embed)
        time = self.to_time(timesteps)  # (texts or N, num_time_embeds, C)
        tokens = [image, *self._last_tokens(image, self_cond)]
        shared = time.shape[1]
        if len(timesteps) != texts:
            tokens, shared = [time, *tokens], 0
        separate = torch.cat(tokens, dim=1)  # (N, n, C)
        lengths = (shared, len(noisy_image_embed) // texts, separate.shape[1])
        separate = separate.view(texts, -1, self.width)
        return (torch.cat([time, separate], dim=1) if shared else separate), lengths

    def _positions(self, cached: int, shared: int, draws: int, tokens: int) -> Positions:
        """Return the position encoding, with its bias converted to the dtype of the `Linear` layers.

        The arguments are those of `PositionEncoding.forward`.
        """
        positions: Positions = self.positions(cached, shared, draws, tokens)
        return positions._replace(bias=positions.bias.to(self.attention[0].to_qkv.weight.dtype))  # type: ignore[union-attr, arg-type]

    def _last_tokens(self, image: torch.Tensor, self_cond: torch.Tensor) -> list[torch.Tensor]:
        """Return the tokens that follow the image tokens of N draws.

        Each tensor in the list has the shape `[N, count, C]`: `count` tokens per draw, stream width C. The network's
        prediction is read at the last token. The tokens are:

        - without self-conditioning: the query
        - with self-conditioning: the self-conditioning token, then the query
        - with self-conditioning, before DALLE2-pytorch 1.12.1: a copy of the image tokens, then the self-conditioning
          token
        """
        query = self.query.expand(image.shape[0], 1, -1)
        if not self.has_self_cond_token:
            return [query]
        estimate = self.to_self_cond(self_cond) if self.takes_self_cond else torch.zeros_like(query)
        return [estimate, query] if self.function.self_cond_before_query else [image, estimate]

    def _token_states(self, token_states: torch.Tensor, drop_text: torch.Tensor | None) -> torch.Tensor:
        """Convert the token states (per-token text-encoder outputs) of B texts to tokens.

        Each state is projected to one token. Learned vectors replace missing states, and all states of the texts for
        which `drop_text` is true.

        Args:
            token_states: `[B, T', W]`: T' states of width W per text. A row of zeros marks a missing state. Only the
                first T states (`max_text_len`) are used. If T' is less than T, the last T - T' states are missing.
            drop_text: `[B]` bool, or None to drop no text.

        Returns:
            The tokens, `[B, T, C]`: T tokens of width C (the stream width) per text.
        """
        states = token_states[:, : self.max_text_len]
        states = F.pad(states, (0, 0, 0, self.max_text_len - states.shape[1]))
        given = (states != 0).any(dim=-1)  # (B, T)
        if drop_text is not None:
            given = given & ~drop_text[:, None]
        states = self.to_token_states(states.flatten(0, 1)).view(*given.shape, -1)
        return torch.where(given[..., None], states, self.null_token_states.to(states.dtype))
