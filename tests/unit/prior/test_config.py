"""The settings of the prior: what is refused, and what counts as a change."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from priorkit.pipeline.config import Settings
from priorkit.prior.config import (
    DiffusionSettings,
    EvaluateSettings,
    NetworkSettings,
    OptimiserSettings,
    SampleSettings,
    TrainSettings,
)

EVERY = (
    DiffusionSettings,
    EvaluateSettings,
    NetworkSettings,
    OptimiserSettings,
    SampleSettings,
    TrainSettings,
)


@pytest.mark.parametrize("cls", EVERY)
def test_every_field_says_what_it_is_and_has_a_default(cls: type[Settings]) -> None:
    settings = cls()
    for name, field in cls.model_fields.items():
        assert field.description, name
    assert cls.model_validate(settings.model_dump()) == settings
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, next(iter(cls.model_fields)), None)


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (NetworkSettings, {"width": 100, "heads": 8}),
        (NetworkSettings, {"width": 24, "heads": 8}),  # a head's width would be odd
        (NetworkSettings, {"dropout": 1.0}),
        (NetworkSettings, {"max_text_len": -1}),
        (DiffusionSettings, {"timesteps": 1}),
        (DiffusionSettings, {"text_drop": 1.1}),
        (DiffusionSettings, {"noise_schedule": "jsd"}),
        (OptimiserSettings, {"learning_rate": 0}),
        (OptimiserSettings, {"ema_decay": 1.0}),
        (OptimiserSettings, {"learning_rate": float("nan")}),
        (TrainSettings, {"batch_size": 0}),
        (TrainSettings, {"seed": -1}),
        (TrainSettings, {"device": "tpu"}),
        (SampleSettings, {"guidance_scale": -1}),
        (SampleSettings, {"steps": 0}),
        (EvaluateSettings, {"split": "train"}),
        (EvaluateSettings, {"max_rows": 1}),
    ],
)
def test_values_out_of_range_are_refused(cls: type[Settings], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        cls(**values)


def test_how_often_a_training_checkpoints_is_no_part_of_its_identity() -> None:
    settings = TrainSettings()
    assert settings.identity() == TrainSettings(checkpoint_every=1, keep_checkpoints=9).identity()
    for other in (
        TrainSettings(threads=2),
        TrainSettings(log_every=1),
        TrainSettings(network=NetworkSettings(depth=1)),
        TrainSettings(optimiser=OptimiserSettings(beta2=0.9)),
    ):
        assert other.identity() != settings.identity()
