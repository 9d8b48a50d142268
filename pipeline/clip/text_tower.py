"""Text tower of an open_clip model, which skips the computation on padding where possible.

If a tower is causal and its embedding is read at the end-of-text token, later tokens do not affect the result. Captions
are then sorted by length, and each batch is cut after its last end-of-text token. The embeddings stay the same, and the
cost grows with the length of the captions instead of the context length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_PROBE_LENGTHS = (1, 2, 5)
"""Numbers of words in the captions on which the tower is tested with and without cutting, before cutting is used."""
_LEAST_COSINE = 0.999
"""Minimum cosine similarity between embeddings computed with and without cutting.

bfloat16 rounding stays above this value. Towers in which later tokens matter fall far below it.
"""


@dataclass(frozen=True)
class TextEmbeds:
    """Output of the text tower for B captions."""

    text_embed: torch.Tensor
    """`[B, D]` float32, not normalised."""
    token_states: torch.Tensor | None
    """`[sum of lengths, D_text]` float32: states after the final norm, before projection; None unless requested."""
    lengths: list[int]
    """Number of token states per caption; empty unless token states were requested."""


class TextTower:
    """Encoder that runs tokens through the text tower of `model`.

    Args:
        model: an open_clip model of any class.
        device: the model's device.
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
        """True if only tokens up to end-of-text affect the result. SigLIP's tower, for example, reads all tokens."""
        self.is_cut = False
        """True if each batch is cut after its last end-of-text token."""
        self.token_width: int | None = None
        """D_text, width of token states; None if the tower provides none."""

    @property
    def blocks(self) -> nn.Module | None:
        """Module that contains the transformer blocks; None for a tower that open_clip did not build."""
        transformer = getattr(self._tower, "transformer", None)
        return transformer if isinstance(transformer, nn.Module) else None

    @torch.inference_mode()
    def probe(self, tokens: torch.Tensor) -> None:
        """Test on tokens `[B, T]` whether the tower provides token states, and whether batches can be cut.

        Batches can be cut if this leaves the embeddings unchanged, up to rounding.
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
        """Encode tokens `[N, T]`, int64, as pooled embeddings and, if requested, token states.

        Results are in the order of the rows in `tokens`, and are on the CPU.
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
        """Return the number of positions in each row that affect the embedding.

        These are the positions up to and including end-of-text, or all positions if later tokens affect it too.
        """
        if not self.ends_at_end_of_text:
            return [tokens.shape[1]] * tokens.shape[0]
        return [end + 1 for end in self._ends(tokens).tolist()]

    def _ends(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the positions `[B]` at which the embeddings are read, computed as in open_clip."""
        is_end = tokens if self._end_id is None else (tokens == self._end_id).int()
        return is_end.argmax(dim=-1)

    def _forward(self, tokens: torch.Tensor, token_states: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the embeddings `[B, D]` of tokens `[B, L]`, and their states `[B, L, D_text]` or None."""
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
        """Return embeddings and token states of tokens `[B, L]`, as open_clip would for the whole context length."""
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
    """Return whether the attention mask hides from each token exactly the tokens after it."""
    mask = getattr(tower, "attn_mask", None)
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
        return False
    later = torch.ones_like(mask, dtype=torch.bool).triu(1)
    return bool((mask[later] == float("-inf")).all()) and bool((mask[~later] == 0).all())


def _is_plain(tower: Any) -> bool:
    """Return whether the tower has exactly the parts that `_forward_cut` computes."""
    parts = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
    if not all(hasattr(tower, name) for name in parts) or not hasattr(tower.transformer, "get_cast_dtype"):
        return False
    return getattr(tower, "cls_emb", None) is None and not getattr(tower, "use_pad_mask", False)


def probe_captions() -> list[str]:
    """Return captions of several lengths for `TextTower.probe`."""
    return ["word " * count for count in _PROBE_LENGTHS]
