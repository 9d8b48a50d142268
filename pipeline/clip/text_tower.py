"""The text tower of an open_clip model, without the work that cannot change its result.

In a tower whose tokens see only earlier ones, and whose embedding is read at the end-of-text token, what follows that
token is of no influence. Captions are then sorted by length, and each batch is cut after its last end-of-text token:
the same embeddings, at a cost that grows with the words that are there instead of with the context's length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_PROBE_LENGTHS = (1, 2, 5)
"""Words of the captions that both paths are compared on before the short one is trusted."""
_LEAST_COSINE = 0.999
"""Beyond the rounding of bfloat16; a tower whose later tokens matter differs by far more."""


@dataclass(frozen=True)
class TextEmbeds:
    """What the text tower makes of B captions."""

    text_embed: torch.Tensor
    """`[B, D]` float32, not normalised."""
    token_states: torch.Tensor | None
    """`[sum of lengths, D_text]` float32: states after the final norm, before projection; None unless asked for."""
    lengths: list[int]
    """Token states of each caption; empty unless asked for."""


class TextTower:
    """Encodes tokens with the text tower of `model`.

    Args:
        model: an open_clip model, of whatever class.
        device: where it is.
        batch_size: captions in one forward pass.
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
        """Whether only tokens up to end-of-text matter, as in causal towers; SigLIP's, for one, is none."""
        self.is_cut = False
        """Whether batches are cut after their last end-of-text token."""
        self.token_width: int | None = None
        """D_text; None of towers whose token states cannot be had."""

    @property
    def blocks(self) -> nn.Module | None:
        """What its transformer's blocks are in, if it is of open_clip's own make."""
        found = getattr(self._tower, "transformer", None)
        return found if isinstance(found, nn.Module) else None

    @torch.inference_mode()
    def probe(self, tokens: torch.Tensor) -> None:
        """Try on tokens `[B, T]` what the tower gives: whether token states, and whether the same when it is cut."""
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
        """Pooled embeddings of captions and, if asked for, the states of their tokens.

        Args:
            tokens: `[N, T]` int64, in batches of the size given.
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
                for row, of_row in zip(rows.tolist(), batch_states, strict=True):
                    states[row] = of_row[: lengths[row]]
        sorted_embeds = torch.cat(embeds).float().cpu()
        text_embed = torch.empty_like(sorted_embeds)
        text_embed[order] = sorted_embeds
        if not token_states:
            return TextEmbeds(text_embed, None, [])
        return TextEmbeds(text_embed, torch.cat(states), lengths)

    def lengths(self, tokens: torch.Tensor) -> list[int]:
        """Begin-of-text through end-of-text for causal towers, all positions for others."""
        if not self.ends_at_end_of_text:
            return [tokens.shape[1]] * tokens.shape[0]
        return [end + 1 for end in self._ends(tokens).tolist()]

    def _ends(self, tokens: torch.Tensor) -> torch.Tensor:
        """Position `[B]` that the embedding is read at; as open_clip finds it."""
        at_end = tokens if self._end_id is None else (tokens == self._end_id).int()
        return at_end.argmax(dim=-1)

    def _forward(self, tokens: torch.Tensor, token_states: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embeddings `[B, D]` and states `[B, L, D_text]` of tokens `[B, L]`."""
        if self.is_cut:
            return self._forward_cut(tokens)
        kept: list[torch.Tensor] = []
        hook = None
        if token_states:
            assert self._final_norm is not None
            hook = self._final_norm.register_forward_hook(lambda module, inputs, output: kept.append(output))
        try:
            return self._model.encode_text(tokens), kept[0] if kept else None
        finally:
            if hook is not None:
                hook.remove()

    def _forward_cut(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As open_clip's towers compute it, for fewer positions than the context has."""
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
    """Whether no token sees a later one."""
    mask = getattr(tower, "attn_mask", None)
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
        return False
    later = torch.ones_like(mask, dtype=torch.bool).triu(1)
    return bool((mask[later] == float("-inf")).all()) and bool((mask[~later] == 0).all())


def _is_plain(tower: Any) -> bool:
    """Whether the tower has the parts that `_forward_cut` knows, and no others."""
    parts = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
    if not all(hasattr(tower, name) for name in parts) or not hasattr(tower.transformer, "get_cast_dtype"):
        return False
    return getattr(tower, "cls_emb", None) is None and not getattr(tower, "use_pad_mask", False)


def probe_captions() -> list[str]:
    """Captions of several lengths, for `TextTower.probe`."""
    return ["word " * count for count in _PROBE_LENGTHS]
