"""Settings of the evaluate stage."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator

from ...pipeline.compute.settings import DeviceSettings
from ...pipeline.settings import Settings
from ..model.settings import WeightsName
from ..sampling.settings import MAX_SEED, SamplerName, SampleSettings

BaselineName = Literal[
    "text embedding", "mean shift", "ridge regression", "linear-Gaussian", "nearest neighbour",
    "random training image",
]  # fmt: skip
BASELINES: tuple[BaselineName, ...] = get_args(BaselineName)


class SweepSettings(Settings):
    """Other ways of drawing, to see what they do to quality: each varies one setting of `evaluate.sample`."""

    steps: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Network evaluations."""
    samplers: tuple[SamplerName, ...] = ()
    """Samplers."""
    guidance_scales: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = ()
    """Scales of guidance."""


class EvaluateSettings(DeviceSettings):
    """Evaluation of a prior on splits it was not trained on."""

    splits: tuple[Literal["validation", "test"], ...] = Field(default=("test",), min_length=1)
    """Rows to evaluate on."""
    weights: tuple[WeightsName, ...] = Field(default=("ema",), min_length=1)
    """Averaged weights, those that were trained, the averaged ones that validated best, or several; the first are the
    prior's."""
    draws: int = Field(default=8, ge=2)
    """Embeddings drawn for each caption; the energy score wants at least 8."""
    max_rows: int = Field(default=10_000, ge=2)
    """Rows of a split that are used at most, the first in a seeded order; the number used is printed."""
    gallery_size: int = Field(default=10_000, ge=2)
    """Images that the true one is searched among at most: those of the first evaluated rows, each once."""
    distance_rows: int = Field(default=5_000, ge=48)
    """Rows that distances of distributions are taken over at most: such distances depend on their number."""
    baselines: tuple[BaselineName, ...] = BASELINES
    """What else is evaluated on the same rows."""
    bank_rows: int = Field(default=100_000, ge=2)
    """Training rows that baselines are fitted on at most."""
    loss_bins: int = Field(default=10, ge=1)
    """Equal parts of the timesteps, in each of which every row has one loss."""
    sample: SampleSettings = SampleSettings()
    """How embeddings are drawn."""
    sweep: SweepSettings = SweepSettings()
    """What else is tried, beside the way of `sample`."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of draws, of the random baseline and of the bootstrap."""
    bootstrap_samples: int = Field(default=1000, ge=100)
    """Resamplings of the rows for the 95% intervals."""

    @field_validator("splits", "weights", "baselines")
    @classmethod
    def _no_name_twice(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError(f"{', '.join(names)}: a name comes twice")
        return names
