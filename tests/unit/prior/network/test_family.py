"""Properties of the settings of each network family, compared with the networks themselves."""

from __future__ import annotations

import pytest

from priorkit.prior.model.config import PriorConfig, build_network
from priorkit.prior.network.families import FAMILIES
from priorkit.prior.network.family import FamilySettings
from priorkit.prior.network.interface import Network
from priorkit.prior.network.prior_transformer.settings import PriorTransformerSettings
from priorkit.prior.network.settings import NetworkSettings
from priorkit.prior.objective.settings import DiffusionSettings

SMALL: list[FamilySettings] = [
    NetworkSettings(depth=1, heads=1, dim_head=8),
    NetworkSettings(depth=1, heads=1, dim_head=8, max_text_len=5),
    NetworkSettings(depth=1, heads=1, dim_head=8, max_text_len=5, function_version="1.8.4"),
    PriorTransformerSettings(num_layers=1, num_attention_heads=1, attention_head_dim=8, num_embeddings=4),
    PriorTransformerSettings(num_layers=1, num_attention_heads=1, attention_head_dim=8, time_token=False),
]


def build(settings: FamilySettings) -> Network:
    normaliser = "clip_stats" if settings.takes_raw_text else "sqrt_dim"
    config = PriorConfig(
        embed_dim=8,
        token_width=6 if settings.max_token_states else None,
        network=settings,
        diffusion=DiffusionSettings(normaliser=normaliser),
        clip={},
        clip_settings={},
    )
    return build_network(config)


@pytest.mark.parametrize("settings", SMALL, ids=repr)
def test_the_settings_describe_the_network(settings: FamilySettings) -> None:
    network = build(settings)
    assert settings.takes_raw_text == network.takes_raw_text
    assert settings.max_token_states == network.max_text_len
    assert settings.function == network.function
    assert settings.needs_empty_text == network.lacks_empty_text  # before it has been set
    if settings.needs_token_states:
        assert network.takes_token_states
    if settings.drops_text and settings.drops_pooled_text:
        assert network.has_null_text


def test_a_family_that_says_nothing_can_do_little() -> None:
    class Plain(FamilySettings):
        family: str = "plain"

    plain = Plain()
    assert (plain.drops_text, plain.drops_pooled_text, plain.drops_image) == (False, False, False)
    assert (plain.takes_raw_text, plain.needs_empty_text, plain.needs_token_states) == (False, False, False)
    assert (plain.uses_time, plain.evaluations, plain.function, plain.most_timesteps) == (True, 1.0, None, None)
    for name in ("max_token_states", "text_tokens", "draw_tokens"):
        with pytest.raises(NotImplementedError):
            getattr(plain, name)


@pytest.mark.parametrize(("name", "cls"), FAMILIES.items())
def test_every_family_is_selected_by_its_name(name: str, cls: type[FamilySettings]) -> None:
    assert cls().family == name
    assert cls.selector == "family"
