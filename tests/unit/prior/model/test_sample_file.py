"""Samples of many texts in one file: one per text, in order, for any batch size."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch

from priorkit.pipeline.errors import InputError, SettingsError
from priorkit.prior.model import sample_file
from priorkit.prior.model.folder import prior_fingerprint
from priorkit.prior.model.prior import SAMPLE_BATCH, Prior
from priorkit.prior.model.sample_file import sample_to_file
from priorkit.prior.model.texts import Captions, TextBatch

from ..raw_priors import S, captions, draw, make_empty, make_raw_config, make_raw_prior
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


# consumers


CLIPS: dict[str, Any] = {
    "kandinsky-2.2": (1280, "ViT-bigG-14", "laion2b_s39b_b160k"),
    "kandinsky-2.1": (768, "ViT-L-14", "openai"),
    "karlo": (768, "ViT-L-14", "openai"),
    "stable-unclip": (1024, "ViT-H-14", "laion2b_s32b_b79k"),
    "ip-adapter": (1024, "ViT-H-14", "laion2b_s32b_b79k"),
    "dalle2-pytorch": (768, "ViT-L-14", "openai"),
    "clip-retrieval": (768, "ViT-L-14", "openai"),
}
"""Size and CLIP of a prior for each consumer."""


class Raw:
    """Three texts with token states, in the form that priors of the family `prior-transformer` take."""

    count, notes = 3, ()

    def batches(self, prior: Prior, size: int) -> Iterator[TextBatch]:
        yield TextBatch(["a", "b", "c"], draw(3, S, seed=2, scale=3.0), captions([1, 5, 3]))


def prior_for(name: str, **config: Any) -> Prior:
    size, model, pretrained = CLIPS[name]
    clip = {"model": model, "pretrained": pretrained}
    settings = make_raw_config(embed_dim=size, **{"clip_settings": clip, **config})
    return make_raw_prior(settings, make_empty(image=size))


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with safetensors.safe_open(path, "np") as file:
        metadata = json.loads(file.metadata()["priorkit"])
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118


@pytest.mark.parametrize("name", CLIPS)
def test_a_file_for_a_consumer(name: str, tmp_path: Path) -> None:
    prior, path = prior_for(name), tmp_path / "a.safetensors"
    done = sample_to_file(prior, Raw(), path, target=name, **FAST)
    tensors, metadata = read(path)
    size = prior.config.embed_dim
    shape = (3, 1, size) if name == "ip-adapter" else (3, size)
    norm = "unit" if name in ("dalle2-pytorch", "clip-retrieval") else "raw"
    expected = prior.sample(
        text_embed=draw(3, S, seed=2, scale=3.0), token_states=captions([1, 5, 3]), norm=norm, **FAST
    )
    assert done.shape == tensors["image_embed"].shape == shape
    assert tensors["image_embed"].dtype == np.float32
    np.testing.assert_allclose(tensors["image_embed"].reshape(3, size), expected.numpy(), rtol=1e-5, atol=1e-6)
    assert {key: metadata[key] for key in ("norm", "for", "prompts")} == {
        "norm": norm, "for": name, "prompts": ["a", "b", "c"],
    }  # fmt: skip
    assert (metadata["clip"], metadata["clip_settings"]) == (prior.config.clip, prior.config.clip_settings)
    assert metadata["prior"] == prior_fingerprint(prior)
    assert prior.empty is not None
    negatives = {"kandinsky-2.1": prior.empty.image_embed, "kandinsky-2.2": prior.empty.image_embed}
    negatives["ip-adapter"] = np.zeros(size, np.float32)
    assert ("negative_image_embed" in tensors) == (name in negatives)
    if name in negatives:
        assert tensors["negative_image_embed"].shape == shape
        assert (tensors["negative_image_embed"] == negatives[name]).all()


def test_a_file_without_a_consumer_has_metadata_but_no_negative(tmp_path: Path) -> None:
    prior, path = prior_for("kandinsky-2.2"), tmp_path / "a.safetensors"
    for given, norm in ((None, "raw"), ("unit", "unit")):
        sample_to_file(prior, Raw(), path, norm=given, **FAST)
        tensors, metadata = read(path)
        assert list(tensors) == ["image_embed"]
        assert (metadata["norm"], metadata["for"]) == (norm, None)


def test_the_metadata_lists_at_most_64_prompts(tmp_path: Path) -> None:
    sample_to_file(make_prior(), Stored(), tmp_path / "a.safetensors", **FAST)
    assert read(tmp_path / "a.safetensors")[1]["prompts"] == [f"row {row}" for row in range(64)]


def test_no_texts_give_an_empty_array_with_metadata(tmp_path: Path) -> None:
    class Nothing(Raw):
        count = 0

        def batches(self, prior: Prior, size: int) -> Iterator[TextBatch]:
            return iter(())

    done = sample_to_file(prior_for("ip-adapter"), Nothing(), tmp_path / "a.safetensors", target="ip-adapter", **FAST)
    tensors, metadata = read(tmp_path / "a.safetensors")
    assert done.shape == tensors["image_embed"].shape == tensors["negative_image_embed"].shape == (0, 1, 1024)
    assert metadata["prompts"] == []


@pytest.mark.parametrize(
    ("target", "output", "settings", "error", "message"),
    [
        ("sdxl", "a.safetensors", {}, SettingsError, "--for sdxl: known are kandinsky-2.2"),
        ("karlo", "a.npy", {}, SettingsError, "a file for karlo also holds the norm and the CLIP; end it with"),
        ("karlo", "a.safetensors", {"norm": "unit"}, SettingsError, "--norm unit: karlo takes embeddings of norm raw"),
        ("clip-retrieval", "a.npy", {"norm": "raw"}, SettingsError, "--norm raw: clip-retrieval takes embeddings"),
        ("kandinsky-2.2", "a.safetensors", {}, InputError, "ViT-bigG-14 (laion2b_s39b_b160k, size 1280), and this"),
        ("ip-adapter", "a.safetensors", {}, InputError, "or ViT-bigG-14 (laion2b_s39b_b160k, size 1280), and this"),
        ("kandinsky-2.1", "a.safetensors", {"negative_prompt": "x"}, SettingsError, "negative_prompt has no effect"),
    ],
)  # fmt: skip
def test_what_a_consumer_does_not_take_is_refused(
    target: str, output: str, settings: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        sample_to_file(prior_for("karlo"), Raw(), tmp_path / output, target=target, **FAST, **settings)
    assert list(tmp_path.iterdir()) == []


def test_another_clip_of_the_same_size_is_refused(tmp_path: Path) -> None:
    prior = prior_for("karlo", clip_settings={"model": "ViT-L-14", "pretrained": "laion2b_s32b_b82k"})
    with pytest.raises(InputError, match=r"--for karlo: it takes embeddings of the CLIP ViT-L-14 \(openai, size 768\)"):
        sample_to_file(prior, Raw(), tmp_path / "a.safetensors", target="karlo", **FAST)
    assert list(tmp_path.iterdir()) == []


def test_a_negative_prompt_is_sampled_for_kandinsky(tiny_clip: Path, tmp_path: Path) -> None:
    """It is the second half of the embeddings that Kandinsky's pipelines compute."""
    clip = {"model": f"local-dir:{tiny_clip}", "pretrained": None}
    config = make_raw_config({"num_embeddings": 77}, embed_dim=1280, text_dim=16, token_width=16, clip_settings=clip)
    prior = make_raw_prior(config, make_empty(1280, 16, 16))
    how = {**FAST, "guidance_scale": 3.0, "negative_prompt": "blurred", "seed": 4}
    path = tmp_path / "a.safetensors"
    done = sample_to_file(prior, Captions(["a cat", "two dogs"]), path, target="kandinsky-2.2", **how)
    assert "it is not known whether the prior's CLIP" in done.notes[0]
    tensors, _ = read(path)
    negative = prior.sample(["blurred"], **FAST, seed=4)
    assert tensors["negative_image_embed"].shape == (2, 1280)
    for row in tensors["negative_image_embed"]:
        np.testing.assert_allclose(row, negative[0].numpy(), rtol=1e-4, atol=1e-4)
    expected = prior.sample(["a cat", "two dogs"], **how)
    np.testing.assert_allclose(tensors["image_embed"], expected.numpy(), rtol=1e-4, atol=1e-4)


def test_a_negative_prompt_that_a_consumer_does_not_take_is_refused(tmp_path: Path) -> None:
    prior = prior_for("karlo")
    prior.__dict__["text_encoder"] = None  # it is refused before a text is encoded
    how = {**FAST, "guidance_scale": 3.0, "negative_prompt": "blurred"}
    with pytest.raises(
        SettingsError, match="--negative-prompt: karlo takes no embedding of one; leave it or --for out"
    ):
        sample_to_file(prior, Raw(), tmp_path / "a.safetensors", target="karlo", **how)
    assert list(tmp_path.iterdir()) == []
