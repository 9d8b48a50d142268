"""Samples of many texts in one file: one per text, in order, for any batch size."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from priorkit.pipeline.errors import InputError, SettingsError
from priorkit.prior.model import sample_file
from priorkit.prior.model.prior import SAMPLE_BATCH, Prior
from priorkit.prior.model.sample_file import sample_to_file
from priorkit.prior.model.texts import TextBatch

from .test_texts import make_prior

ROWS = 150
EMBEDS = torch.randn(ROWS, 16, generator=torch.Generator().manual_seed(0))
STATES = torch.randn(ROWS, 3, 16, generator=torch.Generator().manual_seed(1))
FAST = {"steps": 3}


class Stored:
    """Texts in memory, which count the batches requested."""

    def __init__(self, rows: int = ROWS, with_states: bool = False, fail_at: int | None = None) -> None:
        self.count = rows
        self.notes = ["a note"]
        self.sizes: list[int] = []
        self._with_states = with_states
        self._fail_at = fail_at

    def batches(self, prior: Prior, size: int) -> Iterator[TextBatch]:
        for start in range(0, self.count, size):
            if self._fail_at is not None and start >= self._fail_at:
                raise InputError("row is damaged")
            rows = slice(start, min(start + size, self.count))
            self.sizes.append(rows.stop - rows.start)
            states = STATES[rows] if self._with_states else None
            yield TextBatch([f"row {row}" for row in range(rows.start, rows.stop)], EMBEDS[rows], states)


def sampled(path: Path, *, with_states: bool = False, rows: int = ROWS, **settings: Any) -> np.ndarray:
    torch.manual_seed(0)
    prior = make_prior(3 if with_states else 0)
    sample_to_file(prior, Stored(rows, with_states), path, **{**FAST, **settings})
    return np.load(path)


@pytest.mark.parametrize("with_states", [False, True])
def test_the_file_holds_what_sample_returns(with_states: bool, tmp_path: Path) -> None:
    found = sampled(tmp_path / "a.npy", with_states=with_states, seed=3, num_candidates=2)
    torch.manual_seed(0)
    expected = make_prior(3 if with_states else 0).sample(
        text_embed=EMBEDS, token_states=STATES if with_states else None, seed=3, num_candidates=2, **FAST
    )
    assert np.array_equal(found, expected.numpy())


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dalle2-ddim"])
def test_a_sample_does_not_depend_on_the_batch(sampler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"sampler": sampler, "num_candidates": 2}
    expected = sampled(tmp_path / "a.npy", **settings)
    for size, rows in ((1, 10), (7, 60), (1000, ROWS), (1000, 10)):
        monkeypatch.setattr(sample_file, "SAMPLE_BATCH", size)
        found = sampled(tmp_path / "b.npy", rows=rows, **settings)
        np.testing.assert_allclose(found, expected[:rows], atol=1e-5)


def test_other_seeds_and_other_numbers_give_other_samples(tmp_path: Path) -> None:
    first, second = sampled(tmp_path / "a.npy", seed=0), sampled(tmp_path / "b.npy", seed=1)
    assert np.abs(first - second).max(axis=1).min() > 1e-4


def test_no_more_than_a_batch_is_read_at_once(tmp_path: Path) -> None:
    texts = Stored()
    sample_to_file(make_prior(), texts, tmp_path / "a.npy", **FAST)
    assert texts.sizes == [SAMPLE_BATCH, SAMPLE_BATCH, ROWS - 2 * SAMPLE_BATCH]


def test_the_summary(tmp_path: Path) -> None:
    done = sample_to_file(make_prior(), Stored(), tmp_path / "a.npy", **FAST)
    found = torch.from_numpy(np.load(tmp_path / "a.npy"))
    cosines = torch.nn.functional.cosine_similarity(found, EMBEDS)
    assert done.shape == (ROWS, 16)
    assert done.mean_cosine_to_text == pytest.approx(float(cosines.mean()), abs=1e-6)
    assert done.labels == [f"row {row}" for row in range(20)]
    assert done.cosine_to_text == pytest.approx(cosines[:20].tolist(), abs=1e-6)
    described = json.loads(json.dumps(done.to_json()))
    assert described["shape"] == [ROWS, 16]
    assert set(described) == {"shape", "mean_cosine_to_text", "labels", "cosine_to_text", "notes"}


def test_progress_goes_from_none_to_all(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    sample_to_file(
        make_prior(),
        Stored(),
        tmp_path / "a.npy",
        progress=lambda done, total, note: told.append((done, total)),
        **FAST,
    )
    assert told == [(0, ROWS), (64, ROWS), (128, ROWS), (ROWS, ROWS)]


def test_no_texts_give_an_empty_array(tmp_path: Path) -> None:
    done = sample_to_file(make_prior(), Stored(0), tmp_path / "a.npy", **FAST)
    assert np.load(tmp_path / "a.npy").shape == (0, 16)
    nothing = {"mean_cosine_to_text": None, "labels": [], "cosine_to_text": []}
    assert done.to_json() == {"shape": [0, 16], **nothing, "notes": ["a note"]}


def test_embeddings_of_another_encoder_have_no_cosine(tmp_path: Path) -> None:
    class Narrow(Stored):
        def batches(self, prior: Prior, size: int) -> Iterator[TextBatch]:
            for batch in super().batches(prior, size):
                yield batch._replace(text_embed=batch.text_embed[:, :12])

    done = sample_to_file(make_prior(text_dim=12), Narrow(), tmp_path / "a.npy", num_candidates=2, **FAST)
    assert np.load(tmp_path / "a.npy").shape == (ROWS, 16)
    assert (done.mean_cosine_to_text, done.labels, done.cosine_to_text) == (None, [], [])


@pytest.mark.parametrize("fail_at", [0, 64, 128])
def test_a_failure_leaves_no_file(fail_at: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="row is damaged"):
        sample_to_file(make_prior(), Stored(fail_at=fail_at), tmp_path / "a.npy", **FAST)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"steps": 11}, "steps=11: ddim samples this prior in 1 to 10 steps"),
        ({"sampler": "dimm"}, "sampler"),
        ({"guidance": "image"}, "guidance"),
        ({"guidance_scale": -1.0}, "guidance_scale"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"num_candidates": 0, **FAST}, "num_candidates=0: must be at least 1"),
        (
            {"guidance_scale": 2.0, "guidance": "dalle2", **FAST},
            "guidance=dalle2: this prior was trained without dropping",
        ),
    ],
)
@pytest.mark.parametrize("rows", [0, ROWS])
def test_wrong_settings_are_found_before_a_text_is_read(
    settings: dict[str, Any], named: str, rows: int, tmp_path: Path
) -> None:
    texts = Stored(rows)
    with pytest.raises(SettingsError, match=named):
        sample_to_file(make_prior(), texts, tmp_path / "new/a.npy", **settings)
    assert texts.sizes == []
    assert list(tmp_path.iterdir()) == []
