"""Text encoding with the text tower of an open_clip model, skipping the computation on padding tokens if possible.

If a tower is causal and its embedding is read at the end-of-text token, later tokens do not affect the embedding.
Captions are then sorted by length, and each batch is truncated after its last end-of-text token. The embeddings stay
the same, but the cost of computing them depends on the length of the captions instead of the context length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_PROBE_LENGTHS = (1, 2, 5)
"""Word counts of the test captions that `probe_captions` returns."""
_LEAST_COSINE = 0.999
"""Minimum cosine similarity between each test caption's embeddings with and without truncation. If any similarity is
lower, batches are not truncated.

If the embeddings differ only by bfloat16 rounding, the similarity is higher. If tokens after end-of-text affect the
embedding, the similarity is far lower.
"""


@dataclass(frozen=True)
class TextEmbeds:
    """Result of encoding B captions: their pooled embeddings and, if requested, their token states.

    Token states are the text tower's outputs for each token.
    """

    text_embed: torch.Tensor
    """Pooled embeddings `[B, D]` (D values per caption), float32, not normalised."""
    token_states: torch.Tensor | None
    """Token states of all captions, concatenated: `[sum of lengths, D_text]`, float32; None unless requested.

    Each token has D_text values. They are the outputs of the tower's final norm, before projection.
    """
    lengths: list[int]
    """Number of token states of each caption; empty unless token states were requested."""


class TextTower:
    """Text tower of an open_clip model, which encodes tokenized captions as pooled embeddings and token states.

    Args:
        model: open_clip model of any class, such as `CLIP` or `CustomTextCLIP`.
        device: device of the model.
        batch_size: number of captions per forward pass.
    """

    def __init__(self, model: Any, device: torch.device, batch_size: int) -> None:
        self._model, self._device, self._batch_size = model, device, batch_size
        self._tower = model if hasattr(model, "ln_final") else getattr(model, "text", model)
        self._final_norm: nn.Module | None = getattr(self._tower, "ln_final", None)
        pooling = getattr(self._tower, "text_pool_type", None) or getattr(self._tower, "pool_type", None)
        self._end_id: int | None = None
        if pooling == "eos":
            ends = (getattr(self._tower, name, None) for name in ("text_eos_id", "eos_id"))
            self._end_id = next((end for end in ends if end is not None), None)
        self.ends_at_end_of_text = pooling in ("argmax", "eos") and _is_causal(self._tower)
        """True if the tokens after end-of-text do not affect the embedding.

        It is False for SigLIP, for example, because its text tower reads all tokens.
        """
        self.is_cut = False
        """True if each batch is truncated after its last end-of-text token."""
        self.token_width: int | None = None
        """Width of the token states, D_text; None if the tower provides no token states."""

    @property
    def blocks(self) -> nn.Module | None:
        """Module that contains the transformer blocks; None if the tower is not an open_clip transformer."""
        transformer = getattr(self._tower, "transformer", None)
        return transformer if isinstance(transformer, nn.Module) else None

    @torch.inference_mode()
    def probe(self, tokens: torch.Tensor) -> None:
        """Test whether the tower provides token states, and whether batches can be truncated.

        The results are stored in `token_width` and `is_cut`. Truncation removes the tokens after the last end-of-text
        token in a batch. It is used only if the tower supports it and if it does not change the embeddings of the test
        captions, apart from rounding.

        Args:
            tokens: tokens `[B, T]` of B test captions with different lengths, padded to T tokens.
        """
        if self._final_norm is not None:
            states = self._forward(tokens.to(self._device), token_states=True)[1]
            if states is not None and states.shape[:-1] == tokens.shape:
                self.token_width = states.shape[-1]
        if not (self.ends_at_end_of_text and _is_plain(self._tower)):
            return
        whole = self.encode(tokens).text_embed
        self.is_cut = True
        cut = self.encode(tokens).text_embed
        self.is_cut = bool(torch.cosine_similarity(whole, cut, dim=-1).min() >= _LEAST_COSINE)

    @torch.inference_mode()
    def encode(self, tokens: torch.Tensor, token_states: bool = False) -> TextEmbeds:
        """Encode tokens as pooled embeddings and, if `token_states` is True, token states.

        Args:
            tokens: tokens `[N, T]` of N captions, int64, padded to T tokens.
            token_states: True to return token states. The tower must provide them.

        Returns:
            Results in the order of the rows in `tokens`, on the CPU.
        """
        lengths = self.lengths(tokens)
        order = torch.tensor(lengths).argsort(stable=True) if self.is_cut else torch.arange(len(tokens))
        embeds: list[torch.Tensor] = []
        states: list[torch.Tensor] = [torch.empty(0)] * len(tokens)
        for rows in torch.split(order, self._batch_size):
            batch = tokens[rows]
            if self.is_cut:
                batch = batch[:, : max(lengths[row] for row in rows.tolist())]
            embed, batch_states = self._forward(batch.to(self._device, non_blocking=True), token_states)
            embeds.append(embed)
            if batch_states is not None:
                batch_states = batch_states.float().cpu()  # (B, L, D_text)
                for row, row_states in zip(rows.tolist(), batch_states, strict=True):
                    states[row] = row_states[: lengths[row]]
        sorted_embeds = torch.cat(embeds).float().cpu()
        text_embed = torch.empty_like(sorted_embeds)
        text_embed[order] = sorted_embeds
        if not token_states:
            return TextEmbeds(text_embed, None, [])
        return TextEmbeds(text_embed, torch.cat(states), lengths)

    def lengths(self, tokens: torch.Tensor) -> list[int]:
        """Return the number of tokens in each row that can affect the embedding of the row.

        These are the tokens up to and including end-of-text, or all tokens if `ends_at_end_of_text` is False.
        """
        if not self.ends_at_end_of_text:
            return [tokens.shape[1]] * tokens.shape[0]
        return [end + 1 for end in self._ends(tokens).tolist()]

    def _ends(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the position of the token whose output open_clip uses as the embedding, for each row of tokens.

        The result is an int64 tensor `[B]`, with one position for each of the B rows.
        """
        is_end = tokens if self._end_id is None else (tokens == self._end_id).int()
        return is_end.argmax(dim=-1)

    def _forward(self, tokens: torch.Tensor, token_states: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encode a batch of tokens `[B, L]`: B captions of L tokens each.

        Returns:
            Embeddings `[B, D]`, with D values per caption, and token states `[B, L, D_text]`, with D_text values per
            token. The token states are None if `token_states` and `is_cut` are both False.
        """
        if self.is_cut:
            return self._forward_cut(tokens)
        outputs: list[torch.Tensor] = []
        hook = None
        if token_states:
            assert self._final_norm is not None
            hook = self._final_norm.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        try:
            return self._model.encode_text(tokens), outputs[0] if outputs else None
        finally:
            if hook is not None:
                hook.remove()

    def _forward_cut(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode a batch of tokens `[B, L]`: B captions of L tokens each, where L may be less than the context length.

        Returns:
            Embeddings `[B, D]`, with D values per caption, and token states `[B, L, D_text]`, with D_text values per
            token. The embeddings equal those that open_clip computes for the full context length, up to rounding.
        """
        tower, length = self._tower, tokens.shape[1]
        kind = tower.transformer.get_cast_dtype()
        x = tower.token_embedding(tokens).to(kind) + tower.positional_embedding[:length].to(kind)
        states = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask[:length, :length]))
        pooled = states[torch.arange(len(tokens), device=states.device), self._ends(tokens)]
        projection = tower.text_projection
        if projection is None:
            return pooled, states
        return projection(pooled) if isinstance(projection, nn.Module) else pooled @ projection, states


def _is_causal(tower: Any) -> bool:
    """Return True if the attention mask of a tower lets each token attend to exactly itself and all earlier tokens."""
    mask = getattr(tower, "attn_mask", None)
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
        return False
    later = torch.ones_like(mask, dtype=torch.bool).triu(1)
    return bool((mask[later] == float("-inf")).all()) and bool((mask[~later] == 0).all())


def _is_plain(tower: Any) -> bool:
    """Return True if the text tower is a standard open_clip transformer, and thus supported by `_forward_cut`.

    Towers with a class token or a padding mask are not standard.
    """
    parts = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
    if not all(hasattr(tower, name) for name in parts) or not hasattr(tower.transformer, "get_cast_dtype"):
        return False
    return getattr(tower, "cls_emb", None) is None and not getattr(tower, "use_pad_mask", False)


def probe_captions() -> list[str]:
    """Return test captions of different lengths, to be tokenized and passed to `TextTower.probe`."""
    return ["word " * count for count in _PROBE_LENGTHS]
