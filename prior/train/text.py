"""Text conditions (the text inputs of the network) for training batches.

The text embeddings are read from the dataset, or computed during training by a CLIP model with frozen weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...pipeline.read.batches import Columns, TrainBatch
from ...pipeline.read.dataset import EmbeddingBatch, EmbeddingDataset
from ..model.config import PriorConfig
from ..model.text_encoder import find_text_encoder
from ..network.interface import Condition
from .settings import TrainSettings

if TYPE_CHECKING:
    from ...pipeline.clip.encoder import ClipEncoder

TextSource = Callable[[TrainBatch], Condition]
"""Function that returns the text embeddings of a batch and, if the network uses them, its token states.

Token states are the outputs of the text encoder, one per token. All returned tensors are on the CPU, in any float
dtype. The text embeddings are not normalised if the network takes raw ones; otherwise, they may have any norm.
"""


def text_columns(config: PriorConfig, settings: TrainSettings) -> Columns:
    """Return the dataset columns that training batches must contain for the function from `text_source`.

    With `text_condition: online`, these are the captions. Otherwise, they are the stored text embeddings, and the token
    states if the network uses them.
    """
    raw_image = config.diffusion.takes_raw_images
    if settings.text_condition == "online":
        return Columns(text_embed=False, max_text_len=0, captions=True, raw_image=raw_image)
    raw_text = config.network.takes_raw_text
    return Columns(text_embed=True, max_text_len=_states_used(config), raw_image=raw_image, raw_text=raw_text)


def text_source(config: PriorConfig, settings: TrainSettings) -> TextSource:
    """Return the function that provides the text embeddings and token states for each training batch.

    Batches passed to this function must contain the columns from `text_columns`.

    Raises:
        InputError: captions must be encoded during training, but the CLIP model cannot be loaded, or differs from the
            model that produced the embeddings.
    """
    if settings.text_condition != "online":
        return stored_text
    encoder = find_text_encoder(config.clip_settings, config.clip, "that made the embeddings", settings)
    return OnlineText(encoder, _states_used(config))


def stored_text(batch: TrainBatch) -> Condition:
    """Return the text embeddings that are stored with a batch, and its token states, if any, as a text condition."""
    assert batch.text_embed is not None
    states = None if batch.token_states is None else torch.from_numpy(batch.token_states)
    return Condition(_with_norms(batch.text_embed, batch.text_norm), states)


def raw_images(batch: TrainBatch) -> torch.Tensor:
    """Return the image embeddings of a batch, `[B, D]`, multiplied by their original norms if the batch has these."""
    return _with_norms(batch.image_embed, batch.image_norm)


def _with_norms(embeds: np.ndarray, norms: np.ndarray | None) -> torch.Tensor:
    if norms is None:
        return torch.from_numpy(embeds)
    return torch.from_numpy(embeds).float() * torch.from_numpy(norms)[:, None]


def read_rows(dataset: EmbeddingDataset, rows: np.ndarray, columns: Columns) -> TrainBatch:
    """Read the rows with the given row numbers, in the given order, as a training batch.

    Args:
        rows: B row numbers in the dataset, `[B]`.
        columns: columns to read in addition to the image embeddings.
    """
    image, text, states, captions = dataset.embeds("img_emb", rows), None, None, None
    if columns.text_embed:
        stored = dataset.take(rows, columns.max_text_len)
        text, states = stored.text_embed, stored.token_states
    if columns.captions:
        captions = [str(c or "") for c in dataset.metadata(rows, ["caption"]).column("caption").to_pylist()]
    image_norm, text_norm = (
        dataset.norms(kind)[rows] if kind in columns.norms else None for kind in ("img_emb", "text_emb")
    )
    return TrainBatch(rows, image, text, states, captions, 0, len(rows), image_norm=image_norm, text_norm=text_norm)


def with_text(batch: TrainBatch, encode_text: TextSource) -> EmbeddingBatch:
    """Convert a training batch to an `EmbeddingBatch`, the type of batch used in evaluation.

    Its text embeddings and token states are those that `encode_text` returns for the batch.
    """
    text = encode_text(batch)
    states = None if text.token_states is None else text.token_states.numpy()
    return EmbeddingBatch(batch.rows, raw_images(batch).numpy(), text.text_embed.numpy(), states)


class OnlineText:
    """Text source (see `TextSource`) that encodes the captions of a batch with a CLIP text encoder during training.

    Args:
        max_text_len: maximum number of token states per caption; 0 to return only text embeddings.
    """

    def __init__(self, encoder: ClipEncoder, max_text_len: int) -> None:
        self._encoder, self._max_text_len = encoder, max_text_len

    def __call__(self, batch: TrainBatch) -> Condition:
        """Return the text embeddings of the captions in a batch, and their token states if `max_text_len` is not 0.

        The token states of each caption are cut off at `max_text_len` tokens, or padded with zeros to this length.
        """
        assert batch.captions is not None
        size = self._encoder.identity["embed_dim"]
        width = self._encoder.identity["token_width"] if self._max_text_len else 0
        if not batch.captions:
            states = torch.zeros(0, self._max_text_len, width) if self._max_text_len else None
            return Condition(torch.zeros(0, size), states)
        text = self._encoder.encode_texts(batch.captions, token_states=self._max_text_len > 0)
        if text.token_states is None:
            return Condition(text.text_embed, None)
        states = torch.zeros(len(batch.captions), self._max_text_len, width)
        for row, caption_states in enumerate(torch.split(text.token_states, text.lengths)):
            states[row, : len(caption_states)] = caption_states[: self._max_text_len]
        return Condition(text.text_embed.clone(), states)


def _states_used(config: PriorConfig) -> int:
    """Return the maximum number of token states per caption that the network uses, or 0 if it uses none."""
    return 0 if config.token_width is None else config.network.max_token_states
