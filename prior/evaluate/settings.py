"""Settings for the evaluate stage."""

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
"""Names of all baselines, in the order in which tables and plots show them."""
ONE_SPACE_BASELINES: tuple[BaselineName, ...] = ("text embedding", "mean shift")
"""Names of the baselines that take a text embedding for an image embedding, which needs both in one space."""


class SweepSettings(Settings):
    """Values of sampling settings to try.

    For each value, one more predictor is evaluated. It uses `evaluate.sample` with one setting replaced by this value.
    """

    steps: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Numbers of sampling steps to try."""
    samplers: tuple[SamplerName, ...] = ()
    """Samplers to try."""
    guidance_scales: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = ()
    """Guidance scales to try."""


class EvaluateSettings(DeviceSettings):
    """Settings for evaluating a prior on splits that it was not trained on."""

    splits: tuple[Literal["validation", "test"], ...] = Field(default=("test",), min_length=1)
    """Splits to evaluate."""
    weights: tuple[WeightsName, ...] = Field(default=("ema",), min_length=1)
    """Weights to evaluate: `ema` (averaged weights), `online` (weights that the optimiser updates) or `best` (averaged
    weights with the lowest validation loss). The first entry is used for the predictor `prior`, for sweeps, and for
    samples in the report."""
    draws: int = Field(default=8, ge=2)
    """Number of embeddings drawn per caption. With fewer than 8, the energy score is imprecise."""
    max_rows: int = Field(default=10_000, ge=2)
    """Maximum number of rows to evaluate per split. From a larger split, a random subset that depends on `seed` is
    evaluated. The number of evaluated rows is printed."""
    gallery_size: int = Field(default=10_000, ge=2)
    """Maximum number of images in the gallery (the images that are searched for the true image to compute recall). The
    gallery contains the distinct images of the first evaluated rows."""
    distance_rows: int = Field(default=5_000, ge=48)
    """Maximum number of rows used for the distances between the distributions of predicted and real images. The
    distances depend on this number, so compare only evaluations that use the same number."""
    baselines: tuple[BaselineName, ...] = BASELINES
    """Baselines to evaluate on the same rows."""
    bank_rows: int = Field(default=100_000, ge=2)
    """Maximum number of training rows used to fit the baselines."""
    loss_bins: int = Field(default=10, ge=1)
    """Number of timestep bins of about equal width. The loss of each row is computed at one random timestep per bin."""
    sample: SampleSettings = SampleSettings()
    """Sampling settings of the main predictor, `prior`."""
    sweep: SweepSettings = SweepSettings()
    """Sampling settings to compare with `sample`, changed one at a time."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed for the choice of rows, the predicted embeddings, the losses, the random baselines and the bootstrap."""
    bootstrap_samples: int = Field(default=1000, ge=100)
    """Number of bootstrap resamples for the 95% confidence intervals."""

    @field_validator("splits", "weights", "baselines")
    @classmethod
    def _no_name_twice(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError(f"{', '.join(names)}: a name comes twice")
        return names
