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
"""Names of all baselines, in the order of tables and plots."""


class SweepSettings(Settings):
    """Values of sampling settings to try; each variant changes one setting of `evaluate.sample`."""

    steps: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Numbers of network evaluations."""
    samplers: tuple[SamplerName, ...] = ()
    """Samplers."""
    guidance_scales: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = ()
    """Guidance scales."""


class EvaluateSettings(DeviceSettings):
    """Evaluation of a prior on splits it was not trained on."""

    splits: tuple[Literal["validation", "test"], ...] = Field(default=("test",), min_length=1)
    """Splits to evaluate on."""
    weights: tuple[WeightsName, ...] = Field(default=("ema",), min_length=1)
    """Weights to evaluate: the averaged ones, the ones that the optimiser trains, or the averaged ones with the best
    validation loss. The first are used for `prior`, for sweeps and for samples in the report."""
    draws: int = Field(default=8, ge=2)
    """Embeddings drawn for each caption; the energy score needs at least 8 to be precise."""
    max_rows: int = Field(default=10_000, ge=2)
    """Largest number of rows of a split to evaluate: the first in a seeded order. The number used is printed."""
    gallery_size: int = Field(default=10_000, ge=2)
    """Largest number of images among which recall searches: those of the first evaluated rows, each once."""
    distance_rows: int = Field(default=5_000, ge=48)
    """Largest number of rows for distances between distributions; such distances depend on the number of rows."""
    baselines: tuple[BaselineName, ...] = BASELINES
    """Baselines that are evaluated on the same rows."""
    bank_rows: int = Field(default=100_000, ge=2)
    """Largest number of training rows that baselines are fitted on."""
    loss_bins: int = Field(default=10, ge=1)
    """Number of equal bins of timesteps; each row has one loss in each bin."""
    sample: SampleSettings = SampleSettings()
    """Sampling settings."""
    sweep: SweepSettings = SweepSettings()
    """Other sampling settings to compare with `sample`."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of draws, of the random baseline and of the bootstrap."""
    bootstrap_samples: int = Field(default=1000, ge=100)
    """Bootstrap resamples of the rows for the 95% intervals."""

    @field_validator("splits", "weights", "baselines")
    @classmethod
    def _no_name_twice(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError(f"{', '.join(names)}: a name comes twice")
        return names
