"""The choice of preprocessing and activation: settings, then a config, then tags that agree."""

from __future__ import annotations

from typing import Any

import pytest

from priorkit.pipeline.clip.preprocess import as_trained, decide
from priorkit.pipeline.errors import InputError

DEFAULTS = {
    "mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2], "interpolation": "bicubic", "resize_mode": "shortest",
    "quick_gelu": False,
}  # fmt: skip
HALF = {**DEFAULTS, "mean": [0.5, 0.5, 0.5]}


def chosen(given: dict[str, Any], stated: dict[str, Any], tags: dict[str, Any]) -> dict[str, Any]:
    return decide(given, stated, tags, DEFAULTS, "embed.clip.pretrained=w.pt", "ViT-B-32")


def test_values_that_are_left_out_are_defaults_and_tuples_are_lists() -> None:
    config = {"mean": (0.5, 0.5, 0.5), "std": None, "quick_gelu": True, "url": "https://example.com"}
    assert as_trained(config, DEFAULTS) == {**DEFAULTS, "mean": [0.5, 0.5, 0.5], "quick_gelu": True}
    assert as_trained({"quick_gelu": False}, {**DEFAULTS, "quick_gelu": True})["quick_gelu"] is False


def test_settings_decide_before_a_config_and_a_config_before_tags() -> None:
    tags = {"a": {**DEFAULTS, "interpolation": "bilinear"}}
    assert chosen({}, {}, tags)["interpolation"] == "bilinear"
    assert chosen({}, {"interpolation": "random"}, tags)["interpolation"] == "random"
    assert chosen({"interpolation": "bicubic"}, {"interpolation": "random"}, tags)["interpolation"] == "bicubic"
    assert chosen({}, {}, {}) == DEFAULTS
    assert chosen({}, {}, {"a": HALF, "b": dict(HALF)}) == HALF


def test_tags_that_disagree_are_listed_with_an_example_each() -> None:
    quick = {**DEFAULTS, "quick_gelu": True}
    with pytest.raises(InputError) as raised:
        chosen({}, {}, {"openai": quick, "a": HALF, "b": HALF})
    assert str(raised.value) == (
        "embed.clip.pretrained=w.pt: the preprocessing and activation of these weights is not known, and the tags of "
        "ViT-B-32 differ in it.\nPut their open_clip_config.json beside them, or set embed.clip to "
        "{preprocess: {mean: [0.4, 0.4, 0.4]}, quick_gelu: true} (as openai), or "
        "{preprocess: {mean: [0.5, 0.5, 0.5]}, quick_gelu: false} (as a and 1 more)"
    )


@pytest.mark.parametrize(
    ("given", "part"), [({"quick_gelu": True}, "preprocessing"), ({"mean": [0.5, 0.5, 0.5]}, "activation")]
)
def test_only_what_is_still_open_is_asked_for(given: dict[str, Any], part: str) -> None:
    tags = {"a": HALF, "b": {**DEFAULTS, "quick_gelu": True}}
    with pytest.raises(InputError, match=rf"the {part} of these weights"):
        chosen(given, {}, tags)
