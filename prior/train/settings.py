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
    """AdamW, its learning rate, and the averaged weights."""

    learning_rate: float = Field(default=3e-4, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps over which the learning rate grows linearly from 0."""
    decay: Literal["cosine", "constant"] = "cosine"
    """What follows the warmup: cosine to a tenth of the peak by the last step, or the peak throughout, which lets a
    training go on beyond its last step."""
    weight_decay: float = Field(default=0.06, ge=0)
    """Decay of matrices (not of vectors); the model card's 6.02e-2."""
    beta2: float = Field(default=0.99, gt=0, lt=1)
    """Decay of the second moment."""
    max_grad_norm: float = Field(default=0.5, gt=0)
    """Gradients are scaled down to this norm; the model card's value."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the averaged weights each step, after a warmup of (1 + step) / (10 + step)."""


class InitSettings(Settings):
    """A prior to start from: whatever `load_prior` reads."""

    path: Location
    """Folder of a prior, or a checkpoint of DALLE2-pytorch (`.pth`)."""
    weights: WeightsName = "ema"
    """Averaged weights, those that were trained, or the averaged ones that validated best."""
    config: str | None = None
    """Of a checkpoint: the JSON of its training script, or `laion-model-card`."""
    function_version: str | None = None
    """Of a checkpoint that stores none: the release of dalle2-pytorch whose function it is."""


class TrainSettings(DeviceSettings):
    """Training of a prior."""

    runtime_fields: ClassVar[frozenset[str]] = frozenset(
        {
            "checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "activation_checkpointing", "trackers",
            "tracker_folder", "log_every",
            "init_from",  # its weights are part of the identity, wherever they lie
            "threads", "accumulate", "validate_every", "validation_rows", "validate_draws", "validate_steps",
        }
    )  # fmt: skip
    recorded_fields: ClassVar[tuple[str, ...]] = (
        "threads", "accumulate", "validate_every", "validation_rows", "validate_draws", "validate_steps",
    )  # fmt: skip
    """Fields that may change while a training goes on; its manifest records from which step."""

    network: NetworkSettings = NetworkSettings()
    """The network."""
    diffusion: DiffusionSettings = DiffusionSettings()
    """The diffusion."""
    optimiser: OptimiserSettings = OptimiserSettings()
    """The optimiser."""
    init_from: InitSettings | None = None
    """A prior to start from: network, diffusion and the normaliser's statistics are its own."""
    text_condition: Literal["pooled", "stored", "online"] | None = None
    """Where text comes from. `pooled`: stored embeddings. `stored`: stored token states too. `online`: captions, by the
    embeddings' CLIP. Null: `stored` where the network takes token states, else `pooled`."""
    steps: int = Field(default=100_000, ge=1)
    """Optimiser steps in all; a training with `optimiser.decay: constant` may be given more of them later."""
    batch_size: int = Field(default=256, ge=1)
    """Rows in one step, over all workers; the last batch of an epoch is shorter."""
    accumulate: int = Field(default=1, ge=1)
    """Parts that a worker's rows of a step are computed in, one after the other, to save memory."""
    noise_draws: int = Field(default=1, ge=1)
    """Timesteps and noises for each row of a step, over one pass of its text: with token states 4 cost little more
    than 1. Rows, not draws, are what the learning rate belongs to."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of large products; weights, norms, attention's weights, the loss and the optimiser stay in float32."""
    compile: bool = False
    """Compile the layers with torch.compile: minutes at the start, for a GPU and long runs."""
    activation_checkpointing: bool = False
    """Compute each layer anew in the backward pass: a third more work for a fraction of the memory, same results."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of weights, data order, noise, timesteps, text drops and dropout."""
    log_every: int = Field(default=50, ge=1)
    """Steps between lines of `metrics.jsonl`."""
    validate_every: int = Field(default=500, ge=1)
    """Steps between validations of the averaged weights."""
    validation_rows: int = Field(default=2048, ge=1)
    """Rows of the validation split that are used, with noise that never changes."""
    validate_draws: int = Field(default=0, ge=0)
    """Embeddings drawn for each validation caption, for energy score and cosine; 0 takes losses only."""
    validate_steps: int = Field(default=16, ge=1)
    """Network evaluations of each of these draws."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints: at most this much work is lost by a kill."""
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    """Minutes between checkpoints, where steps are slow."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """What shows metrics besides `metrics.jsonl`; an extra each."""
    tracker_folder: Location | None = None
    """Local folder that trackers write to; null is `trackers` in the prior's, if that is local."""

    @property
    def steps_may_change(self) -> bool:
        """Return whether no step depends on the number of steps in all."""
        return self.optimiser.decay == "constant"

    def identity(self) -> dict[str, Any]:
        """See `Settings`; `steps` counts only where the learning rate follows from it."""
        dumped = super().identity()
        if self.steps_may_change:
            del dumped["steps"]
        return dumped

    def recorded(self) -> dict[str, Any]:
        """Values, by their names in a recipe, that may change while a training goes on."""
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
