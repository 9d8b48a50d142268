"""Text conditions as they are stored, and from captions through a text tower."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from priorkit.pipeline.clip.encoder import ClipEncoder
from priorkit.pipeline.compute.settings import DeviceSettings
from priorkit.pipeline.read.batches import Columns, TrainBatch
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.prior.model.text_encoder import find_text_encoder
from priorkit.prior.network.interface import Condition
from priorkit.prior.train.job import TrainJob
from priorkit.prior.train.text import OnlineText, read_rows, stored_text, text_columns, text_source, with_text

MakeJob = Callable[..., TrainJob]


@pytest.fixture(scope="module")
def encoder(tiny_clip: Path) -> ClipEncoder:
    place = {"model": f"local-dir:{tiny_clip}", "pretrained": None}
    return find_text_encoder(place, {}, "of the test", DeviceSettings(device="cpu", threads=1))


def batch_of(captions: list[str]) -> TrainBatch:
    rows = np.arange(len(captions))
    return TrainBatch(rows, np.zeros((len(rows), 16), np.float16), None, None, captions, 0, len(rows))


def test_columns_are_those_that_the_text_condition_needs(make_train_job: MakeJob) -> None:
    job = make_train_job(network__max_text_len=3)
    assert text_columns(job.config, job.settings) == Columns(text_embed=True, max_text_len=3, captions=False)
    pooled = make_train_job()
    assert text_columns(pooled.config, pooled.settings) == Columns(text_embed=True, max_text_len=0, captions=False)
    online = job.settings.model_copy(update={"text_condition": "online"})
    assert text_columns(job.config, online) == Columns(text_embed=False, max_text_len=0, captions=True)
    assert text_source(job.config, job.settings) is stored_text


def test_rows_are_read_in_their_order(dataset: EmbeddingDataset) -> None:
    rows = np.array([31, 2])
    batch = read_rows(dataset, rows, Columns(text_embed=True, max_text_len=2, captions=True))
    assert batch.rows.tolist() == [31, 2]
    assert batch.captions == ["caption 31", "caption 2"]
    assert np.array_equal(batch.image_embed, dataset.embeds("img_emb", rows))
    assert batch.text_embed is not None
    assert np.array_equal(batch.text_embed, dataset.embeds("text_emb", rows))
    assert batch.token_states is not None
    assert batch.token_states.shape == (2, 2, 6)
    assert (batch.first, batch.global_rows) == (0, 2)
    image_only = read_rows(dataset, rows, Columns(text_embed=False))
    assert (image_only.text_embed, image_only.token_states, image_only.captions) == (None, None, None)


def test_stored_text_is_the_condition_of_a_batch(dataset: EmbeddingDataset) -> None:
    batch = read_rows(dataset, np.array([5, 6]), Columns(text_embed=True, max_text_len=2))
    text = stored_text(batch)
    assert np.array_equal(text.text_embed.numpy(), batch.text_embed)
    assert text.token_states is not None
    assert np.array_equal(text.token_states.numpy(), batch.token_states)
    evaluated = with_text(batch, lambda batch: Condition(torch.ones(2, 16), None))
    assert evaluated.rows.tolist() == [5, 6]
    assert (evaluated.text_embed == 1).all()
    assert evaluated.token_states is None
    assert np.array_equal(evaluated.image_embed, batch.image_embed)


def test_captions_are_encoded_and_their_states_cut_and_padded(encoder: ClipEncoder) -> None:
    captions = ["red", "a large blue square on a green field"]
    expected = encoder.encode_texts(captions, token_states=True)
    text = OnlineText(encoder, 4)(batch_of(captions))
    assert torch.equal(text.text_embed, expected.text_embed)
    assert text.token_states is not None
    assert text.token_states.shape == (2, 4, 16)
    assert expected.token_states is not None
    short, long = torch.split(expected.token_states, expected.lengths)
    assert len(short) < 4 < len(long)
    assert torch.equal(text.token_states[0, : len(short)], short.float())
    assert (text.token_states[0, len(short) :] == 0).all()
    assert torch.equal(text.token_states[1], long[:4].float())


def test_pooled_captions_have_no_states_and_no_captions_give_an_empty_condition(encoder: ClipEncoder) -> None:
    assert OnlineText(encoder, 0)(batch_of(["red"])).token_states is None
    empty = OnlineText(encoder, 4)(batch_of([]))
    assert empty.text_embed.shape == (0, 16)
    assert empty.token_states is not None
    assert empty.token_states.shape == (0, 4, 16)
    assert OnlineText(encoder, 0)(batch_of([])).token_states is None
