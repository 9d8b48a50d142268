"""Arguments of the pipelines, and settings that a decoder refuses. `test_stage.py` draws with the pipelines."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from priorkit.pipeline.errors import SettingsError
from priorkit.prior.decode.decoders import DECODER_CLASSES, Batch
from priorkit.prior.decode.settings import DECODERS, DecodeSettings

ROWS, NEGATIVE = torch.arange(6.0).view(2, 3), -torch.ones(2, 3)
BATCH = Batch(ROWS, NEGATIVE, ["a", "b"], [])


def arguments(name: Any, batch: Batch = BATCH, **settings: Any) -> dict[str, Any]:
    return DECODER_CLASSES[name](None).arguments(batch, DecodeSettings(**settings))


def test_every_name_has_a_decoder() -> None:
    assert tuple(DECODER_CLASSES) == DECODERS


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("kandinsky-2.2", {"image_embeds": ROWS, "negative_image_embeds": NEGATIVE}),
        ("kandinsky-2.1", {"image_embeds": ROWS, "negative_image_embeds": NEGATIVE, "prompt": ["a", "b"]}),
        ("karlo", {"image_embeddings": ROWS}),
        ("stable-unclip", {"image_embeds": ROWS, "prompt": ["a", "b"]}),
    ],
)
def test_the_defaults_of_a_pipeline_are_left_alone(name: str, expected: dict[str, Any]) -> None:
    assert arguments(name) == expected


def test_settings_have_the_names_that_each_pipeline_takes() -> None:
    given = arguments("kandinsky-2.2", steps=5, guidance_scale=2.0, size=64)
    options = {"num_inference_steps": 5, "guidance_scale": 2.0, "height": 64, "width": 64}
    assert options.items() <= given.items()
    given = arguments("karlo", steps=5, guidance_scale=2.0)
    assert {"decoder_num_inference_steps": 5, "decoder_guidance_scale": 2.0}.items() <= given.items()
    assert arguments("stable-unclip", noise_level=7)["noise_level"] == 7


def test_an_ip_adapter_gets_the_negatives_first_and_none_without_guidance() -> None:
    one = Batch(ROWS[:1, None], NEGATIVE[:1, None], ["a"], [])
    assert [embeds.tolist() for embeds in arguments("ip-adapter", one)["ip_adapter_image_embeds"]] == [
        [[[-1.0, -1.0, -1.0]], [[0.0, 1.0, 2.0]]]
    ]
    alone = arguments("ip-adapter", one, guidance_scale=1.0)["ip_adapter_image_embeds"]
    assert [embeds.tolist() for embeds in alone] == [[[[0.0, 1.0, 2.0]]]]


@pytest.mark.parametrize(
    ("name", "settings", "named"),
    [
        ("karlo", {"size": 64}, "--size 64: karlo draws pictures of one size"),
        ("karlo", {"prompts": True}, "karlo takes no prompts"),
        ("kandinsky-2.2", {"prompts": False}, "kandinsky-2.2 takes no prompts"),
        ("kandinsky-2.1", {"noise_level": 0}, "only stable-unclip adds noise"),
        ("stable-unclip", {"ip_adapter": "x"}, "--ip-adapter x: stable-unclip has none"),
        ("karlo", {"steps": 1}, "--steps 1: karlo needs at least 2"),
        ("ip-adapter", {"ip_adapter": "x", "batch_size": 2}, "--batch-size 2: ip-adapter draws one picture at a time"),
        ("ip-adapter", {}, "--for ip-adapter needs the adapter's weights: --ip-adapter FILE"),
    ],
)
def test_a_setting_without_effect_is_refused(name: Any, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError) as error:
        DECODER_CLASSES[name].check(DecodeSettings(**settings))
    assert named in str(error.value)


def test_other_settings_are_taken() -> None:
    for name, cls in DECODER_CLASSES.items():
        cls.check(DecodeSettings(steps=2, guidance_scale=1, limit=1, ip_adapter="x" if name == "ip-adapter" else None))
