"""Consumers of samples: the CLIP, norm, shape and negative embedding of each."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from priorkit.pipeline.errors import InputError, SettingsError
from priorkit.prior.model.config import NormStatistics, PriorConfig
from priorkit.prior.model.prior import Prior
from priorkit.prior.model.settings import TargetName
from priorkit.prior.model.targets import TARGETS, check_target, find_target, negative_embed, shaped
from priorkit.prior.objective.settings import DiffusionSettings

from ..raw_priors import D, draw, make_empty, make_raw_config, make_raw_prior

CLIPS: dict[int, Any] = {
    768: {"model": "ViT-L-14", "pretrained": "openai"},
    1024: {"model": "ViT-H-14", "pretrained": "laion2b_s32b_b79k"},
    1280: {"model": "ViT-bigG-14", "pretrained": "laion2b_s39b_b160k"},
}


def config(size: int, *, raw: bool = True, **more: Any) -> PriorConfig:
    made = make_raw_config(embed_dim=size, **{"clip_settings": CLIPS.get(size, {}), **more})
    if raw:
        return made
    unit = DiffusionSettings()
    return made.model_copy(update={"diffusion": unit})  # of a unit prior: only its config is looked at


def test_every_name_has_a_target() -> None:
    assert list(TARGETS) == list(get_args(TargetName))
    assert all(find_target(name).name == name for name in TARGETS)
    with pytest.raises(SettingsError, match=r"--for sdxl: known are kandinsky-2\.2, kandinsky-2\.1, karlo, "):
        find_target("sdxl")


@pytest.mark.parametrize(
    ("name", "norm", "sizes", "negative", "shape"),
    [
        ("kandinsky-2.2", "raw", [1280], "zero image", (D,)),
        ("kandinsky-2.1", "raw", [768], "zero image", (D,)),
        ("karlo", "raw", [768], None, (D,)),
        ("stable-unclip", "raw", [768, 1024], None, (D,)),
        ("ip-adapter", "raw", [1024, 1280], "zeros", (1, D)),
        ("dalle2-pytorch", "unit", [], None, (D,)),
        ("clip-retrieval", "unit", [], None, (D,)),
    ],
)
def test_what_each_takes(name: str, norm: str, sizes: list[int], negative: str | None, shape: tuple[int, ...]) -> None:
    target = find_target(name)
    assert (target.norm, target.negative) == (norm, negative)
    assert sorted(clip.embed_dim for clip in target.clips) == sizes
    assert shaped(target, D) == shape
    assert shaped(None, D) == (D,)
    for size in CLIPS:
        if not sizes or size in sizes:
            assert check_target(target, config(size)) == []
        else:
            with pytest.raises(InputError, match=rf"--for {name}: it takes embeddings of the CLIP ViT-.* size {size}"):
                check_target(target, config(size))


def test_another_clip_of_the_same_size_is_refused() -> None:
    other = {"model": "ViT-L-14", "pretrained": "laion2b_s32b_b82k"}
    message = r"--for karlo: it takes embeddings of the CLIP ViT-L-14 \(openai, size 768\), and this prior's is ViT-L"
    with pytest.raises(InputError, match=message):
        check_target(find_target("karlo"), config(768, clip_settings=other))


def test_an_unknown_clip_is_a_note() -> None:
    for unknown in ({}, {"model": "local-dir:/x", "pretrained": None}):
        (note,) = check_target(find_target("karlo"), config(768, clip_settings=unknown))
        assert note.startswith("it is not known whether the prior's CLIP, ")
        assert "ViT-L-14 (openai, size 768)" in note


def test_a_prior_of_no_clip_fits_no_decoder() -> None:
    spaces = {"source": {"name": "audio", "size": 10}, "target": {"name": "image", "size": 768}}
    with pytest.raises(InputError, match="no CLIP made this prior's"):
        check_target(find_target("karlo"), config(768, spaces=spaces))
    assert check_target(find_target("clip-retrieval"), config(768, spaces=spaces)) == []


@pytest.mark.parametrize(
    ("name", "size", "warned"),
    [
        ("karlo", 768, True), ("stable-unclip", 1024, True), ("kandinsky-2.1", 768, True),
        ("kandinsky-2.2", 1280, False), ("ip-adapter", 1024, False), ("clip-retrieval", 768, False),
    ],
)  # fmt: skip
def test_a_sensitive_decoder_is_warned_of_one_norm_for_all(name: str, size: int, warned: bool) -> None:
    norms = NormStatistics(mean=20.0, std=2.0)
    notes = check_target(find_target(name), config(size, raw=False, image_norm=norms))
    assert len(notes) == warned
    if warned:
        assert "all samples get the mean norm of its training images, 20; their norms vary by 10%" in notes[0]
        assert "normaliser=clip_stats" in notes[0]
    assert check_target(find_target(name), config(size, image_norm=norms)) == []  # this one predicts norms


@pytest.fixture
def prior() -> Prior:
    return make_raw_prior(empty=make_empty())


def test_negative_embeddings(prior: Prior) -> None:
    assert prior.empty is not None
    zero_image, sampled = torch.from_numpy(prior.empty.image_embed), draw(D)
    for name in ("kandinsky-2.1", "kandinsky-2.2"):
        for given, expected in ((None, zero_image), (sampled, sampled)):
            found = negative_embed(find_target(name), prior, given)
            assert found is not None
            assert torch.equal(found, expected)
    zeros = negative_embed(find_target("ip-adapter"), prior, None)
    assert zeros is not None
    assert torch.equal(zeros, torch.zeros(D))
    for name in ("karlo", "stable-unclip", "dalle2-pytorch", "clip-retrieval"):
        assert negative_embed(find_target(name), prior, None) is None


@pytest.mark.parametrize("name", ["karlo", "stable-unclip", "ip-adapter", "dalle2-pytorch", "clip-retrieval"])
def test_a_negative_prompt_that_is_not_taken_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=f"--negative-prompt: {name} takes no embedding of one; leave it or"):
        check_target(find_target(name), config(768), has_negative_prompt=True)


def test_an_unknown_zero_image_is_an_error_with_the_fix() -> None:
    with pytest.raises(InputError, match="convert it with --clip and --clip-pretrained"):
        negative_embed(find_target("kandinsky-2.2"), make_raw_prior(), None)
