"""Settings for the train stage."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from ...pipeline.compute.settings import DeviceSettings
from ...pipeline.settings import Location, Settings
from ..model.settings import WeightsName
from ..network.families import AnyNetworkSettings
from ..network.settings import NetworkSettings
from ..objective.settings import DiffusionSettings, check_drops, check_network
from ..sampling.settings import MAX_SEED


class OptimiserSettings(Settings):
    """Settings for the AdamW optimiser, the learning rate and the averaged weights."""

    learning_rate: float = Field(default=3e-4, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(default=100, ge=0)
    """Number of steps over which the learning rate rises linearly from 0 to its peak."""
    decay: Literal["cosine", "constant"] = "cosine"
    """Learning rate after warmup. With `cosine`, it decays to a tenth of the peak at the last step. With `constant`, it
    stays at the peak, so that a finished run can be extended with more steps."""
    weight_decay: float = Field(default=0.06, ge=0)
    """Weight decay of weight matrices. Vectors, such as biases, have no weight decay. The default is close to 6.02e-2,
    the value in the model card of LAION's prior."""
    beta2: float = Field(default=0.99, gt=0, lt=1)
    """Decay rate of AdamW's second-moment estimate."""
    max_grad_norm: float = Field(default=0.5, gt=0)
    """Maximum gradient norm. Larger gradients are scaled down to this norm. The default is from the model card of
    LAION's prior."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Decay rate per step of the exponential moving average of the weights. In early steps, the rate is limited to
    (1 + step) / (10 + step)."""


class InitSettings(Settings):
    """Settings for loading the initial prior, which is the existing prior whose weights training starts from."""

    path: Location
    """Prior folder, folder of a prior or pipeline of diffusers, or DALLE2-pytorch checkpoint (`.pth`)."""
    weights: WeightsName = "ema"
    """Weights to load: the averaged weights (`ema`), the weights that the optimiser updates (`online`), or the averaged
    weights from the validation run with the lowest loss (`best`)."""
    config: Location | None = None
    """Configuration of a DALLE2-pytorch checkpoint: the path of the JSON file that its training script used, or
    `laion-model-card` for LAION's prior."""
    function_version: str | None = None
    """DALLE2-pytorch release that the checkpoint was trained with, if the checkpoint does not record the release."""


class LoraSettings(Settings):
    """Settings for low-rank adapters (LoRA), which are trained in place of the weights."""

    rank: int = Field(default=4, ge=1)
    """Rank of the adapters. A higher rank can learn more, and has more weights."""
    alpha: float | None = Field(default=None, gt=0)
    """Scale of the adapters, as a multiple of 1 / rank. Null: the rank, so the scale is 1."""
    targets: tuple[str, ...] = Field(default=("to_q", "to_k", "to_v", "to_out.0"), min_length=1)
    """Layers that get an adapter: names of linear layers, or the last parts of their names. The default is all
    projections of attention in a `prior-transformer`."""

    @property
    def resolved_alpha(self) -> float:
        """Value of `alpha`, or the rank if it is null."""
        return float(self.rank if self.alpha is None else self.alpha)


class TrainSettings(DeviceSettings):
    """Settings for the train stage: the `train` section of a recipe."""

    later_fields: ClassVar[frozenset[str]] = frozenset({"lora"})

    runtime_fields: ClassVar[frozenset[str]] = frozenset(
        {
            "checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "activation_checkpointing", "trackers",
            "tracker_folder", "log_every",
            "init_from",  # the identity includes the initial weights, but not their path
            "threads", "accumulate", "validate_every", "validation_rows", "validate_draws", "validate_steps",
            "patience",
        }
    )  # fmt: skip
    recorded_fields: ClassVar[tuple[str, ...]] = (
        "threads", "accumulate", "validate_every", "validation_rows", "validate_draws", "validate_steps",
    )  # fmt: skip
    """Fields that may change when training resumes. The manifest records each change and its step. `steps` and
    `patience` are added by `recorded`, since not every run has them."""

    network: AnyNetworkSettings = NetworkSettings()
    """Network settings of the family that `network.family` names."""
    diffusion: DiffusionSettings = DiffusionSettings()
    """Diffusion settings."""
    optimiser: OptimiserSettings = OptimiserSettings()
    """Optimiser settings."""
    init_from: InitSettings | None = None
    """Initial prior, which provides the initial weights, network settings, diffusion settings and normaliser
    statistics. If null, training starts from random weights."""
    lora: LoraSettings | None = None
    """Low-rank adapters to train in place of all weights; requires `init_from`. The finished prior has merged weights,
    and the adapters are also stored alone, in `pytorch_lora_weights.safetensors`. Null trains all weights."""
    text_condition: Literal["pooled", "stored", "online"] | None = None
    """Text that the prior is conditioned on. `pooled`: stored text embeddings. `stored`: stored text embeddings and
    token states (CLIP text encoder outputs, one per token). `online`: captions, encoded during training by the CLIP
    model that produced the embeddings. Null: `stored` if the network takes token states, otherwise `pooled`."""
    steps: int = Field(default=100_000, ge=1)
    """Total number of optimiser steps. With `optimiser.decay: constant`, the total can be increased later."""
    batch_size: int = Field(default=256, ge=1)
    """Number of rows per step, summed over all workers. The last batch of an epoch may be smaller."""
    accumulate: int = Field(default=1, ge=1)
    """Number of micro-batches into which each worker splits its rows of a batch. To save memory, the micro-batches are
    processed one at a time."""
    noise_draws: int = Field(default=1, ge=1)
    """Number of draws (pairs of timestep and noise) per row in each step. The network encodes the text of a row only
    once for all draws. If it uses token states (per-token text-encoder outputs), 4 draws therefore take little more
    time than 1. Base the learning rate on the number of rows per step; do not scale it with `noise_draws`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type for large matrix products. Parameters, norms, attention weights, loss and optimiser stay in float32."""
    compile: bool = False
    """Compile the layers with torch.compile. This adds minutes at startup and pays off in long runs on a GPU."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass instead of storing its activations. This increases computation by a
    third, but greatly reduces memory use. Results do not change."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed for initial weights, data order, noise, timesteps, dropped texts and images, and dropout."""
    log_every: int = Field(default=50, ge=1)
    """Number of steps between lines in `metrics.jsonl`."""
    validate_every: int = Field(default=500, ge=1)
    """Number of steps between validation runs, which use the averaged weights."""
    validation_rows: int = Field(default=2048, ge=1)
    """Maximum number of rows per validation run. Every validation run uses the same rows and the same noise."""
    patience: int | None = Field(default=None, ge=1)
    """Number of successive validation runs without a new lowest loss after which training stops early and publishes the
    prior. The weights of the lowest loss are the weights `best`. Null trains to the last step."""
    validate_draws: int = Field(default=0, ge=0)
    """Number of embeddings sampled per caption in validation. The energy score and the cosine similarity are computed
    from them. The number must be at least 2, or 0 to compute only the loss."""
    validate_steps: int = Field(default=16, ge=1)
    """Number of sampling steps (network evaluations) per embedding in validation, if `validate_draws` is not 0."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Maximum number of steps between checkpoints. A killed run loses at most this many steps."""
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    """Maximum number of minutes between checkpoints, in case `checkpoint_every` steps take longer."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Number of most recent checkpoints to keep."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Trackers to send metrics to, in addition to `metrics.jsonl`. Each requires the priorkit extra (optional
    dependency group) of the same name."""
    tracker_folder: Location | None = None
    """Local folder that trackers write to. Null: the subfolder `trackers` of the prior folder, which must be local."""

    @property
    def steps_may_change(self) -> bool:
        """True if training can be resumed with a different value of `steps`.

        This requires a constant learning rate after warmup, which does not depend on `steps`.
        """
        return self.optimiser.decay == "constant"

    def identity(self) -> dict[str, Any]:
        """Return the settings that must not change when training resumes, because the trained weights depend on them.

        They include `steps`, unless `steps_may_change` is True.
        """
        dumped = super().identity()
        if self.steps_may_change:
            del dumped["steps"]
        return dumped

    def recorded(self) -> dict[str, Any]:
        """Return the values of the settings that may change when training resumes.

        The keys are the names of the settings in a recipe, such as `train.threads`. `steps` is included if
        `steps_may_change` is True, and `patience` if it is set. The manifest records every change of these values.
        """
        optional = {"steps": self.steps_may_change, "patience": self.patience is not None}
        names = (*self.recorded_fields, *(name for name, is_present in optional.items() if is_present))
        return {f"train.{name}": getattr(self, name) for name in names}

    @field_validator("validate_draws")
    @classmethod
    def _one_draw_has_no_spread(cls, draws: int) -> int:
        if draws == 1:
            raise ValueError("the energy score needs at least 2 draws; or 0 for none")
        return draws

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        network, diffusion = self.network, self.diffusion
        if self.lora is not None and self.init_from is None:
            raise ValueError("lora adapts a trained prior, and init_from names none; set train.init_from.path")
        if self.init_from is None or "normaliser" in diffusion.model_fields_set:  # otherwise, the initial prior has one
            check_network(network, diffusion)
        check_drops(network, diffusion)
        if self.validate_draws and self.validate_steps > diffusion.timesteps:
            raise ValueError(f"validate_steps={self.validate_steps} is more than diffusion.timesteps")
        if self.init_from is None and self.text_condition == "pooled" and network.max_token_states:
            if network.needs_token_states:
                raise ValueError(f"text_condition=pooled: a {network.family} needs token states; take stored or online")
            raise ValueError(
                f"text_condition=pooled has no token states: set network.max_text_len to 0, not "
                f"{network.max_token_states}, or take stored or online"
            )
        if self.init_from is None and self.text_condition == "stored" and not network.max_token_states:
            raise ValueError("text_condition=stored reads token states: set network.max_text_len, or take pooled")
        return self
