"""README of an export: what to pass, and lines of Python that parse."""

from __future__ import annotations

import ast

import pytest

from priorkit.prior.interchange.diffusers.readme import readme
from priorkit.prior.interchange.diffusers.settings import to_prior_config

from .folders import CONFIG, ECLIPSE


@pytest.mark.parametrize("layout", [CONFIG, ECLIPSE])
def test_the_snippet_is_python(layout: dict[str, object]) -> None:
    config = to_prior_config(layout, None, "config.json", "")
    text = readme(config, "float16")
    ast.parse(text.split("```python\n")[1].split("```")[0])
    assert "torch.float16" in text
    assert "one that this prior does not name" in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_clip_and_the_guidance_are_those_of_the_prior() -> None:
    config = to_prior_config(CONFIG, None, "config.json", "")
    clip = {"model": "ViT-bigG-14", "pretrained": "laion2b_s39b_b160k"}
    text = readme(config.model_copy(update={"clip_settings": clip}), "float32")
    assert "ViT-bigG-14 (laion2b_s39b_b160k) in the names of open_clip" in text
    assert "guidance_scale=4.0" in text
    unguided = config.diffusion.model_copy(update={"text_drop": 0.0})
    assert "guidance_scale=1.0" in readme(config.model_copy(update={"diffusion": unguided}), "float32")
