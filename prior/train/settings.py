"""Settings of the train stage."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from ...pipeline.compute.settings import DeviceSettings
from ...pipeline.settings import Location, Settings
from ..model.settings import WeightsName
from ..network.function_version import FunctionVersion
from ..network.settings import NetworkSettings
from ..objective.settings import DiffusionSettings
from ..sampling.settings import MAX_SEED


class OptimiserSettings(Settings):
    """Settings of AdamW, its learning rate, and the averaged weights."""

    learning_rate: float = Field(default=3e-4, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps over which the learning rate grows linearly from 0."""
    decay: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warmup. `cosine` falls to a tenth of the peak at the last step. `constant` keeps the
    peak, so that a training can be given more steps later."""
    weight_decay: float = Field(default=0.06, ge=0)
    """Weight decay of matrices (vectors have none); the model card uses 6.02e-2."""
    beta2: float = Field(default=0.99, gt=0, lt=1)
    """Decay of the second moment."""
    max_grad_norm: float = Field(default=0.5, gt=0)
    """Largest norm of the gradients; larger ones are scaled down to it. The value is the model card's."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the averaged weights per step, after a warmup of (1 + step) / (10 + step)."""


class InitSettings(Settings):
    """Settings of a prior to start from, in any form that `load_prior` reads."""

    path: Location
    """Folder of a prior, or a checkpoint of DALLE2-pytorch (`.pth`)."""
    weights: WeightsName = "ema"
    """Weights to use: averaged (`ema`), trained (`online`), or the averaged ones that validated best (`best`)."""
    config: str | None = None
    """Config of a DALLE2-pytorch checkpoint: the JSON of its training script, or `laion-model-card`."""
    function_version: str | None = None
    """Release of dalle2-pytorch that a checkpoint was trained with, if the checkpoint does not store it."""


class TrainSettings(DeviceSettings):
    """Settings of the training of a prior."""

    runtime_fields: ClassVar[frozenset[str]] = frozenset(
        {
            "checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "activation_checkpointing", "trackers",
            "tracker_folder", "log_every",
            "init_from",  # its weights are part of the identity, not their path
            "threads", "accumulate", "validate_every", "validation_rows", "validate_draws", "validate_steps",
        }
    )  # fmt: skip
    recorded_fields: ClassVar[tuple[str, ...]] = (
        "threads", "accumulate", "validate_every", "validation_rows", "validate_draws", "validate_steps",
    )  # fmt: skip
    """Fields that may change when a training is resumed; the manifest records from which step."""

    network: NetworkSettings = NetworkSettings()
    """Settings of the network."""
    diffusion: DiffusionSettings = DiffusionSettings()
    """Settings of the diffusion."""
    optimiser: OptimiserSettings = OptimiserSettings()
    """Settings of the optimiser."""
    init_from: InitSettings | None = None
    """Prior to start from: its network, diffusion and normaliser statistics are used."""
    text_condition: Literal["pooled", "stored", "online"] | None = None
    """Source of the text. `pooled`: stored embeddings. `stored`: stored token states too. `online`: captions, encoded
    by the embeddings' CLIP. Null: `stored` if the network takes token states, else `pooled`."""
    steps: int = Field(default=100_000, ge=1)
    """Total number of optimiser steps; with `optimiser.decay: constant`, a training can be given more later."""
    batch_size: int = Field(default=256, ge=1)
    """Rows per step, over all workers; the last batch of an epoch is shorter."""
    accumulate: int = Field(default=1, ge=1)
    """Number of parts that a worker splits its rows of a step into, to save memory."""
    noise_draws: int = Field(default=1, ge=1)
    """Number of timesteps and noises per row and step, which share one pass over the text: with token states, 4 cost
    little more than 1. Choose the learning rate by the number of rows, not of draws."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of large matrix products. Parameters, norms, attention weights, loss and optimiser stay in float32."""
    compile: bool = False
    """Compile the layers with torch.compile. This takes minutes at the start and pays off on a GPU in long runs."""
    activation_checkpointing: bool = False
    """Compute each layer again in the backward pass: a third more work, a fraction of the memory, the same results."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of weights, data order, noise, timesteps, text drops and dropout."""
    log_every: int = Field(default=50, ge=1)
    """Steps between lines of `metrics.jsonl`."""
    validate_every: int = Field(default=500, ge=1)
    """Steps between validations of the averaged weights."""
    validation_rows: int = Field(default=2048, ge=1)
    """Largest number of rows of the validation split to use; their noise is the same in every validation."""
    validate_draws: int = Field(default=0, ge=0)
    """Number of embeddings sampled per validation caption, for energy score and cosine; 0 computes losses only."""
    validate_steps: int = Field(default=16, ge=1)
    """Number of network evaluations per sampled embedding in validation."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints: a kill loses at most this much work."""
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    """Minutes between checkpoints, if steps are slow."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Number of newest checkpoints to keep."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Trackers that receive the metrics beside `metrics.jsonl`; each needs an extra of the package."""
    tracker_folder: Location | None = None
    """Local folder that trackers write to; null: `trackers` in the prior's folder, if that is local."""

    @property
    def steps_may_change(self) -> bool:
        """Return whether the steps do not depend on their total number, so that it may change later."""
        return self.optimiser.decay == "constant"

    def identity(self) -> dict[str, Any]:
        """Return the fields that the result depends on; `steps` is one only if the learning rate depends on it."""
        dumped = super().identity()
        if self.steps_may_change:
            del dumped["steps"]
        return dumped

    def recorded(self) -> dict[str, Any]:
        """Return the values that may change when a training is resumed, by their names in a recipe."""
        names = (*self.recorded_fields, *(("steps",) if self.steps_may_change else ()))
        return {f"train.{name}": getattr(self, name) for name in names}

    @field_validator("validate_draws")
    @classmethod
    def _one_draw_has_no_spread(cls, draws: int) -> int:
        if draws == 1:
            raise ValueError("the energy score needs at least 2 draws; or 0 for none")
        return draws

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        function, diffusion = FunctionVersion.parse(self.network.function_version), self.diffusion
        if not function.has_null_tokens and (diffusion.text_drop or diffusion.image_drop):
            raise ValueError(
                f"dalle2-pytorch {function} had nothing in place of what is dropped: set diffusion.text_drop and "
                "diffusion.image_drop to 0, or leave out network.function_version"
            )
        if self.network.num_timesteps is not None and self.network.num_timesteps < diffusion.timesteps:
            raise ValueError(
                f"network.num_timesteps={self.network.num_timesteps} is fewer than diffusion.timesteps="
                f"{diffusion.timesteps}"
            )
        if self.validate_draws and self.validate_steps > diffusion.timesteps:
            raise ValueError(f"validate_steps={self.validate_steps} is more than diffusion.timesteps")
        if self.init_from is None and self.text_condition == "pooled" and self.network.max_text_len:
            raise ValueError(
                f"text_condition=pooled has no token states: set network.max_text_len to 0, not "
                f"{self.network.max_text_len}, or take stored or online"
            )
        if self.init_from is None and self.text_condition == "stored" and not self.network.max_text_len:
            raise ValueError("text_condition=stored reads token states: set network.max_text_len, or take pooled")
        return self
