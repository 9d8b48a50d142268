"""Fields that may change when a training is resumed, and combinations of fields that are refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from priorkit.prior.network.settings import NetworkSettings
from priorkit.prior.train.settings import OptimiserSettings, TrainSettings

RAW = {"family": "prior-transformer"}
STATS = {"normaliser": "clip_stats"}


def test_only_fields_that_change_weights_are_part_of_the_identity() -> None:
    settings = TrainSettings()
    free = {"checkpoint_every": 1, "keep_checkpoints": 9, "log_every": 1}
    recorded = {
        "threads": 2, "accumulate": 2, "validate_every": 1, "validation_rows": 1, "validate_draws": 2,
        "validate_steps": 1,
    }  # fmt: skip
    assert TrainSettings(**free, **recorded).identity() == settings.identity()
    assert TrainSettings(**free, **recorded).recorded() == {f"train.{name}": value for name, value in recorded.items()}
    constant = OptimiserSettings(decay="constant")
    longer = TrainSettings(optimiser=constant, steps=7)
    assert longer.identity() == TrainSettings(optimiser=constant).identity()
    assert longer.recorded()["train.steps"] == 7
    for other in (
        TrainSettings(steps=7),
        TrainSettings(batch_size=7),
        TrainSettings(network=NetworkSettings(depth=1)),
        TrainSettings(optimiser=OptimiserSettings(beta2=0.9)),
    ):
        assert other.identity() != settings.identity()


def test_recorded_fields_are_no_part_of_the_identity() -> None:
    settings = TrainSettings()
    assert set(settings.recorded()) == {f"train.{name}" for name in settings.recorded_fields}
    assert not set(settings.recorded_fields) & set(settings.identity())
    assert settings.recorded()["train.validate_every"] == 500
    assert {"network", "diffusion", "optimiser", "seed", "batch_size", "dtype"} <= set(settings.identity())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"validate_draws": 1}, "the energy score needs at least 2 draws; or 0 for none"),
        ({"validate_draws": 2, "validate_steps": 101, "diffusion": {"timesteps": 100}}, "validate_steps=101 is more"),
        ({"network": {"num_timesteps": 99}, "diffusion": {"timesteps": 100}}, "num_timesteps=99 is fewer"),
        ({"network": {"max_text_len": 3}, "text_condition": "pooled"}, "pooled has no token states"),
        ({"network": {"max_text_len": 0}, "text_condition": "stored"}, "stored reads token states"),
        ({"network": RAW}, "normaliser=sqrt_dim: a prior-transformer works with embeddings that are not normalised"),
        ({"network": RAW, "diffusion": {**STATS, "prediction": "v"}}, "prediction=v: a prior-transformer predicts x0"),
        ({"network": RAW, "diffusion": {**STATS, "image_drop": 0.1}}, "image_drop: a prior-transformer cannot drop"),
        ({"network": RAW, "diffusion": STATS, "text_condition": "pooled"}, "a prior-transformer needs token states"),
        (
            {"network": {**RAW, "time_token": False}, "diffusion": STATS},
            "time_token=false: .* cannot be trained by diffusion",
        ),
        ({"network": RAW, "init_from": {"path": "x"}, "diffusion": {"normaliser": "whiten"}}, "normaliser=whiten"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainSettings.model_validate(values)


def test_the_normaliser_is_that_of_the_prior_to_start_from_unless_given() -> None:
    TrainSettings.model_validate({"network": RAW, "init_from": {"path": "prior"}})


def test_limits_are_inclusive() -> None:
    TrainSettings.model_validate({"validate_draws": 2, "validate_steps": 100, "diffusion": {"timesteps": 100}})
    TrainSettings.model_validate({"network": {"num_timesteps": 100}, "diffusion": {"timesteps": 100}})
    TrainSettings.model_validate({"validate_draws": 0, "validate_steps": 101, "diffusion": {"timesteps": 100}})
