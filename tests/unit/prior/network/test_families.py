"""A setting that contains the network settings of any family."""

from __future__ import annotations

from typing import Any

import pytest

from priorkit.pipeline.errors import SettingsError
from priorkit.pipeline.settings import Settings, parse_settings, settings_kinds
from priorkit.prior.network.families import DEFAULT_FAMILY, FAMILIES, AnyNetworkSettings
from priorkit.prior.network.prior_transformer.settings import PriorTransformerSettings
from priorkit.prior.network.settings import NetworkSettings


class Holder(Settings):
    network: AnyNetworkSettings = NetworkSettings()


def parse(network: Any) -> Any:
    return parse_settings(Holder, {"network": network}, "recipe").network


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, NetworkSettings()),
        ({"depth": 3}, NetworkSettings(depth=3)),
        ({"family": "causal-transformer", "depth": 3}, NetworkSettings(depth=3)),
        ({"family": "prior-transformer"}, PriorTransformerSettings()),
        ({"family": "prior-transformer", "num_layers": 3}, PriorTransformerSettings(num_layers=3)),
        (PriorTransformerSettings(num_layers=3), PriorTransformerSettings(num_layers=3)),
        (NetworkSettings(depth=3), NetworkSettings(depth=3)),
    ],
)
def test_the_family_selects_the_class(given: Any, expected: Settings) -> None:
    found = parse(given)
    assert type(found) is type(expected)
    assert found == expected
    assert parse(found.model_dump(mode="json")) == expected


def test_every_family_is_a_member_of_the_union() -> None:
    assert settings_kinds(Holder.model_fields["network"].annotation) == list(FAMILIES.values())
    assert isinstance(Holder().network, FAMILIES[DEFAULT_FAMILY])


@pytest.mark.parametrize("family", ["resnet", 3, None, ["causal-transformer"], {}])
def test_an_unknown_family_is_named_with_the_known_ones(family: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        parse({"family": family})
    known = "unknown family; known are causal-transformer, prior-transformer"
    assert str(caught.value).startswith(f"recipe: network.family: {known} (got ")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"family": "prior-transformer", "width": 3},
            "width: a key of family causal-transformer, not of prior-transformer; known keys: attention_head_dim, ",
        ),
        (
            {"num_layers": 3},
            "num_layers: a key of family prior-transformer, not of causal-transformer; did you mean 'depth'?",
        ),
        (
            {"family": "prior-transformer", "num_layer": 3},
            "num_layer: unknown key; did you mean 'num_layers'?",
        ),
        (
            {"family": "prior-transformer", "widht": 3},
            "widht: unknown key; known keys: attention_head_dim, dropout, ",
        ),
        ({"attention_head": 3}, "attention_head: unknown key; did you mean 'heads'?"),
        ({"famly": "prior-transformer"}, "famly: unknown key; did you mean 'family'?"),
        ({"family": "prior-transformer", "num_layers": 0}, "num_layers: Input should be greater than or equal to 1"),
        ({"family": "prior-transformer", "num_layers": "x"}, "num_layers: Input should be a valid integer, unable to"),
        ({"family": "prior-transformer", "norm_in_type": "rms"}, "norm_in_type: Input should be 'layer' (got 'rms')"),
        ({"depth": "x"}, "depth: Input should be a valid integer, unable to parse string as an integer (got 'x')"),
    ],
)
def test_messages_are_about_the_chosen_family(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(given)
    assert str(caught.value).startswith(f"recipe: network.{said}")
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("given", [None, 5, "prior-transformer", []])
def test_values_that_are_no_mapping_are_refused(given: Any) -> None:
    with pytest.raises(SettingsError, match=r"^recipe: network: expected a section, that is keys with values"):
        parse(given)


def test_the_identity_of_a_prior_of_the_default_family_has_no_family() -> None:
    """Folders that were made before there were families can be continued."""
    assert "family" not in Holder().identity()["network"]
    assert Holder(network=PriorTransformerSettings()).identity()["network"]["family"] == "prior-transformer"
