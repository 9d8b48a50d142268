"""The prior network: a causal transformer over `[token states, pooled text, time, noisy image, query]`.

It computes the function of DALLE2-pytorch's `DiffusionPriorNetwork`, release by release (see `function.py`), of which
more widths may differ here. The prediction is read at the last token. Text comes first and never sees the timestep or
the noise, so the network has two calls: `prefix` turns the text into a cache of keys and values, and `suffix` predicts
from the cache. A sampler calls `prefix` once and `suffix` once a step.

Letters: B texts, K draws of one text, N = B * K rows, T token states, D embedding, C width of the stream.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .cache import DrawnTexts, PrefixCache
from .function_version import LATEST_FUNCTION, FunctionVersion
from .layers import Attention, FeedForward, LayerNorm, PositionEncoding, run_layers
from .linear import Linear
from .parts import KeysValues, Part, Positions, after_the_last, join
from .tokens import TimeTokens, Tokens


class PriorNetwork(nn.Module):
    """Predicts x0, eps or v of an image embedding from its noisy version, the timestep and the text.

    Args:
        embed_dim: D, size of image embeddings.
        text_dim: size of pooled text embeddings; None for D.
        token_width: W, width of token states; None if the network is given none.
        width: C, width of the token stream; D in DALLE2-pytorch.
        depth, heads, dim_head, ff_mult: layers, attention heads and their width, and the feed-forward's inner width as
            a multiple of C.
        max_text_len: T, token states that are used; missing ones are replaced by learned vectors. 0 uses none.
        num_timesteps: rows of a table of learned timestep embeddings; None takes sinusoids and a small MLP.
        num_time_embeds, num_image_embeds, num_text_embeds: tokens that each of them is given.
        self_cond: take the last estimate as another token (Chen et al. 2022, arXiv 2208.04202).
        rotary_emb, norm_in, norm_out, final_proj, normformer: parts of the transformer that may be left out or added.
        function_version: release of DALLE2-pytorch whose function is computed.
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
        self.function = FunctionVersion.parse(function_version)
        if width != embed_dim and not final_proj:
            raise ValueError(f"final_proj=False needs a width ({width}) equal to the embedding's size ({embed_dim})")
        if self_cond and not self.function.takes_self_cond:
            raise ValueError(f"self_cond=True: dalle2-pytorch {function_version} had none")
        self.embed_dim, self.width, self.max_text_len = embed_dim, width, max_text_len
        self.text_dim, self.token_width = text_dim or embed_dim, token_width
        self.self_cond = self_cond
        self.checkpoint_activations = False
        """Whether layers are computed anew in the backward pass instead of kept."""
        self.takes_token_states = max_text_len > 0 and token_width is not None
        self.to_text = Tokens(self.text_dim, width, num_text_embeds)
        self.to_image = Tokens(embed_dim, width, num_image_embeds)
        self.to_time = TimeTokens(width, num_time_embeds, num_timesteps, self.function.real_timesteps)
        if self.takes_token_states:
            assert token_width is not None
            self.to_token_states = Tokens(token_width, width, 1)
        if self_cond and self.function.reads_self_cond:
            self.to_self_cond = Tokens(embed_dim, width, 1)
        self.query = nn.Parameter(torch.randn(width))
        # learned padding of token states, which also takes their place where the text is dropped
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

    @property
    def pads_only(self) -> bool:
        """Whether learned padding is all that it has for token states."""
        return self.max_text_len > 0 and not self.takes_token_states

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
        """The prediction `[B, D]` for noisy embeddings `[B, D]` at timesteps `[B]`; see `prefix` and `suffix`."""
        cache = self.prefix(text_embed, token_states, drop_text)
        return self.suffix(cache, noisy_image_embed, timesteps, drop_image=drop_image, self_cond=self_cond)

    def prefix(
        self,
        text_embed: torch.Tensor,
        token_states: torch.Tensor | None = None,
        drop_text: torch.Tensor | None = None,
        padding: PrefixCache | None = None,
    ) -> PrefixCache:
        """Keys and values of B texts.

        Args:
            text_embed: `[B, D]` (or text_dim).
            token_states: `[B, T', W]`, rows of zeros being padding, cut at max_text_len; None if it takes none.
            drop_text: `[B]` bool, rows whose text is replaced by learned vectors; None drops nothing.
            padding: what `padding_prefix` gave, to be computed once where it is needed often.

        Raises:
            ValueError: token states are missing, or text is dropped of a function that had no vectors for it.
        """
        tokens = self._prefix_tokens(text_embed, token_states, drop_text)
        if not self.pads_only:
            return self._cache(tokens, None)
        padding = padding or self.padding_prefix()
        return padding.followed_by(self._cache(tokens, padding))

    def padding_prefix(self) -> PrefixCache:
        """Keys and values of the learned padding, where it is all that the network has for token states: one row."""
        return self._cache(self.null_token_states[None], None)

    def suffix(
        self,
        cache: PrefixCache,
        noisy_image_embed: torch.Tensor,
        timesteps: torch.Tensor,
        *,
        drop_image: torch.Tensor | None = None,
        self_cond: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The prediction `[N, D]` for K draws of each of the cache's B texts, all draws of a text side by side.

        Args:
            noisy_image_embed: `[N, D]`.
            timesteps: `[N]` int64, or `[B]` where the draws of a text are at the same timestep, which is faster.
            drop_image: `[N]` bool, rows whose noisy image is replaced by a learned vector.
            self_cond: `[N, D]` estimates to be conditioned on, zeros if None, of a network that takes them.
        """
        tokens, lengths = self._suffix_tokens(cache.texts, noisy_image_embed, timesteps, drop_image, self_cond)
        if lengths not in cache.positions:
            cache.positions[lengths] = self._places(cache.tokens, *lengths)
        part = Part(len(tokens), tokens.shape[1], cache.positions[lengths], cache)
        stream, _ = self._run([tokens], [part])
        return self._prediction(stream, lengths)

    def draws(
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
        """The prediction `[N, D]` of N draws, as `suffix` of `prefix` gives it, in one pass over the weights.

        For training: a layer multiplies the tokens of texts and draws at once, and its gradient is computed once.

        Args:
            text_embed, token_states, drop_text: as for `prefix`.
            draws: which of these texts each draw sees.
            noisy_image_embed, timesteps, drop_image, self_cond: as for `suffix`, N of each.
        """
        text = self._prefix_tokens(text_embed, token_states, drop_text)
        own, lengths = self._suffix_tokens(len(timesteps), noisy_image_embed, timesteps, drop_image, self_cond)
        tokens, parts, cached = [text, own], [], 0
        if self.pads_only:
            tokens.insert(0, self.null_token_states[None])
            cached = self.max_text_len
            parts.append(Part(1, cached, self._places(0, 0, 1, cached), None))
        length = text.shape[1]
        parts.append(Part(len(text), length, self._places(cached, 0, 1, length), after_the_last if cached else None))
        parts.append(Part(len(own), own.shape[1], self._places(cached + length, *lengths), draws))
        stream, _ = self._run(tokens, parts)
        return self._prediction(stream, lengths)

    def _run(
        self, tokens: list[torch.Tensor], parts: list[Part], read: bool = True
    ) -> tuple[torch.Tensor, list[list[KeysValues]]]:
        """The layers, over the tokens of parts `[R, L, C]`; see `run_layers`."""
        return run_layers(
            self.norm_in(join(tokens)), parts, self.attention, self.feed_forward,
            read=read, checkpointed=self.checkpoint_activations and torch.is_grad_enabled(),
        )  # fmt: skip

    def _prediction(self, stream: torch.Tensor, lengths: tuple[int, int, int]) -> torch.Tensor:
        """What the last token of each draw says, `[N, D]`."""
        shared, _, own = lengths
        last = stream[:, shared:].reshape(-1, own, self.width)[:, -1]  # (N, C)
        prediction: torch.Tensor = self.to_embed(self.norm_out(last))
        return prediction if prediction.dtype == torch.float64 else prediction.float()

    def _prefix_tokens(
        self, text_embed: torch.Tensor, token_states: torch.Tensor | None, drop_text: torch.Tensor | None
    ) -> torch.Tensor:
        """Tokens `[B, P, C]` of texts, without padding where that is all there is; see `prefix`."""
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
        """Tokens `[texts, L, C]` of draws, those of a text side by side; how many are shared, draws, tokens of each."""
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
        own = torch.cat(tokens, dim=1)  # (N, n, C)
        lengths = (shared, len(noisy_image_embed) // texts, own.shape[1])
        own = own.view(texts, -1, self.width)
        return (torch.cat([time, own], dim=1) if shared else own), lengths

    def _places(self, cached: int, shared: int, draws: int, own: int) -> Positions:
        """What attention needs to know of the tokens after `cached` ones, in the type that it computes in."""
        positions: Positions = self.positions(cached, shared, draws, own)
        return positions._replace(bias=positions.bias.to(self.attention[0].to_qkv.weight.dtype))  # type: ignore[union-attr, arg-type]

    def _last_tokens(self, image: torch.Tensor, self_cond: torch.Tensor) -> list[torch.Tensor]:
        """What follows the image, `[N, _, C]` each; the prediction is read at the last."""
        query = self.query.expand(image.shape[0], 1, -1)
        if not self.self_cond:
            return [query]
        estimate = self.to_self_cond(self_cond) if self.function.reads_self_cond else torch.zeros_like(query)
        return [estimate, query] if self.function.self_cond_before_query else [image, estimate]

    def _token_states(self, token_states: torch.Tensor, drop_text: torch.Tensor | None) -> torch.Tensor:
        """Token states as `[B, T, C]`: padding and dropped text become the learned vector of their position."""
        states = token_states[:, : self.max_text_len]
        states = F.pad(states, (0, 0, 0, self.max_text_len - states.shape[1]))
        given = (states != 0).any(dim=-1)  # (B, T)
        if drop_text is not None:
            given = given & ~drop_text[:, None]
        states = self.to_token_states(states.flatten(0, 1)).view(*given.shape, -1)
        return torch.where(given[..., None], states, self.null_token_states.to(states.dtype))

    def _cache(self, tokens: torch.Tensor, before: PrefixCache | None) -> PrefixCache:
        """Keys and values of tokens `[B, n, C]`, at the beginning or after those of one text for all."""
        batch, length, _ = tokens.shape
        part = Part(batch, length, self._places(0 if before is None else before.tokens, 0, 1, length), before)
        _, found = self._run([tokens], [part], read=False)
        return PrefixCache([known[0] for known in found])
