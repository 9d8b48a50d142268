"""Names and values of the weights of transformers as open_clip has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from priorkit.pipeline.clip.convert.siglip import Siglip
from priorkit.pipeline.clip.convert.transformers_config import read_config
from priorkit.pipeline.clip.convert.transformers_weights import to_open_clip


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_every_tensor_has_a_place_in_the_model(name: str, request: pytest.FixtureRequest) -> None:
    folder, model = request.getfixturevalue(name)
    family, config = read_config(folder)
    empty = Siglip(config, open_clip, None) if family == "siglip" else open_clip.CLIP(**config)
    converted = to_open_clip(model.state_dict(), family)
    assert {name: value.shape for name, value in converted.items()} == {
        name: value.shape for name, value in empty.state_dict().items()
    }


def test_values_are_joined_and_transposed(clip: tuple[Path, Any]) -> None:
    state = clip[1].state_dict()
    converted = to_open_clip(state, "clip")
    layer = "text_model.encoder.layers.1.self_attn"
    joined = torch.cat([state[f"{layer}.{part}_proj.bias"] for part in "qkv"])
    assert torch.equal(converted["transformer.resblocks.1.attn.in_proj_bias"], joined)
    assert torch.equal(converted["text_projection"], state["text_projection.weight"].T)
    assert torch.equal(converted["visual.ln_pre.weight"], state["vision_model.pre_layrnorm.weight"])


def test_positions_of_old_files_are_left_out_and_unknown_names_are_kept() -> None:
    tensors = {"text_model.embeddings.position_ids": torch.ones(1), "classifier.weight": torch.ones(1)}
    assert set(to_open_clip(tensors, "clip")) == {"classifier.weight"}
