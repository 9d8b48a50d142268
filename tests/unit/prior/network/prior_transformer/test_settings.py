"""Settings of a `PriorTransformer`: sizes, and values without effect."""

from __future__ import annotations

import re
from typing import Any

import pytest

from priorkit.pipeline.errors import SettingsError
from priorkit.pipeline.settings import parse_settings
from priorkit.prior.network.prior_transformer.settings import PriorTransformerSettings

from ...raw_priors import make_network


@pytest.mark.parametrize(("time_token", "added"), [(True, 4), (False, 3)])
def test_sizes_are_those_of_the_network(time_token: bool, added: int) -> None:
    settings = PriorTransformerSettings(
        num_attention_heads=3, attention_head_dim=5, num_embeddings=9, time_token=time_token
    )
    assert (settings.width, settings.additional_embeddings) == (15, added)
    assert (settings.text_tokens, settings.draw_tokens) == (10, added - 1)
    assert (settings.max_token_states, settings.uses_time) == (9, time_token)
    network = make_network(num_attention_heads=3, attention_head_dim=5, num_embeddings=9, time_token=time_token)
    assert network.positional_embedding.shape == (1, settings.text_tokens + settings.draw_tokens, 15)


@pytest.mark.parametrize("given", [{"time_embed_dim": 8}, {"time_embed_act_fn": "gelu"}])
def test_settings_of_a_timestep_that_is_not_used_are_refused(given: dict[str, Any]) -> None:
    assert parse_settings(PriorTransformerSettings, given, "x").uses_time
    message = "time_embed_dim and time_embed_act_fn have no effect with time_token=false; leave them out"
    with pytest.raises(SettingsError, match=re.escape(message)):
        parse_settings(PriorTransformerSettings, {**given, "time_token": False}, "x")


@pytest.mark.parametrize(
    "given",
    [
        {"num_attention_heads": 0}, {"attention_head_dim": 0}, {"num_layers": 0}, {"num_layers": 1001},
        {"num_embeddings": 0}, {"dropout": 1.0}, {"dropout": -0.1}, {"time_embed_act_fn": "tanh"},
        {"time_embed_dim": 0}, {"norm_in_type": "rms"}, {"embedding_proj_norm_type": "batch"}, {"family": "other"},
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(given))):
        parse_settings(PriorTransformerSettings, given, "x")
