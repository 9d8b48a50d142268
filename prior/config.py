"""Settings of the network, its diffusion, training, sampling and evaluation: frozen data with light imports."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from ..pipeline.config import DeviceSettings
from ..pipeline.settings import Location, Settings
from .network.function_version import LATEST_FUNCTION, FunctionVersion

MAX_SEED = 2**63 - 1
"""Largest seed that all generators in use take."""

SamplerName = Literal["ddpm", "ddim", "dpmsolver++", "dalle2-ddim"]
GuidanceName = Literal["text", "dalle2"]
WeightsName = Literal["ema", "online", "best"]
BaselineName = Literal[
    "text embedding", "mean shift", "ridge regression", "linear-Gaussian", "nearest neighbour",
    "random training image",
]  # fmt: skip
BASELINES: tuple[BaselineName, ...] = get_args(BaselineName)


class NetworkSettings(Settings):
    """The prior network; the names are those of DALLE2-pytorch, whose function it computes."""

    width: int = Field(default=512, ge=8)
    """Width of the token stream; independent of the embedding's size."""
    depth: int = Field(default=6, ge=1, le=1000)
    """Transformer layers."""
    heads: int = Field(default=8, ge=1)
    """Attention heads; they share one head of keys and values."""
    dim_head: int = Field(default=64, ge=2)
    """Width of an attention head; DALLE2-pytorch's default."""
    ff_mult: float = Field(default=4, gt=0)
    """Hidden width of the feed-forward layers, as a multiple of `width`."""
    attn_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of attention weights; 0 keeps a run a pure function of its seed on any worker count."""
    ff_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout inside the feed-forward layers."""
    max_text_len: int = Field(default=0, ge=0)
    """Token states that condition the prior besides the pooled text; 0 uses the pooled text alone."""
    num_timesteps: int | None = Field(default=None, ge=2)
    """Rows of a table of learned timestep embeddings; null computes them from sinusoids."""
    num_time_embeds: int = Field(default=1, ge=1)
    """Tokens for the timestep."""
    num_image_embeds: int = Field(default=1, ge=1)
    """Tokens for the noisy image embedding."""
    num_text_embeds: int = Field(default=1, ge=1)
    """Tokens for the pooled text embedding."""
    self_cond: bool = False
    """Condition on the last estimate of x0 (Chen et al. 2022); training then takes 1.5 times as long."""
    rotary_emb: bool = True
    """Rotary position embedding besides the relative bias."""
    norm_in: bool = False
    """A norm of the tokens before the first layer."""
    norm_out: bool = True
    """A norm of the prediction after the last layer."""
    final_proj: bool = True
    """A projection of the prediction; without it `width` must be the embedding's size."""
    normformer: bool = False
    """A norm inside the feed-forward layers; the model card's choice."""
    function_version: str = LATEST_FUNCTION
    """Release of DALLE2-pytorch whose function is computed; older ones are for imported checkpoints."""

    @field_validator("function_version")
    @classmethod
    def _function_is_known(cls, value: str) -> str:
        FunctionVersion.parse(value)
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.rotary_emb and self.dim_head % 2:
            raise ValueError(f"dim_head={self.dim_head} must be even for rotary_emb")
        if self.num_timesteps is None and self.width % 2:
            raise ValueError(f"width={self.width} must be even for sinusoidal timesteps; or set num_timesteps")
        if self.self_cond and not FunctionVersion.parse(self.function_version).takes_self_cond:
            raise ValueError(f"self_cond=True: dalle2-pytorch {self.function_version} had none")
        return self


class DiffusionSettings(Settings):
    """The diffusion that the network is trained to undo."""

    timesteps: int = Field(default=1000, ge=2, le=1_000_000)
    """Noise levels; 1000 as in DALL-E 2's prior."""
    noise_schedule: Literal["cosine", "linear", "quadratic", "jsd", "sigmoid"] = "cosine"
    """How noise grows with the timestep; cosine (Nichol and Dhariwal 2021) as in DALL-E 2's prior."""
    prediction: Literal["x0", "eps", "v"] = "x0"
    """What the network predicts; x0, as DALL-E 2 found it to work best."""
    loss: Literal["l2", "l1", "huber"] = "l2"
    """Error of the prediction: squared, absolute, or squared below 1 and absolute above."""
    loss_weighting: Literal["none", "min_snr"] = "none"
    """Weights of timesteps in the loss: equal, or the signal-to-noise ratio up to 5 (Hang et al. 2023)."""
    text_drop: float = Field(default=0.1, ge=0, le=1)
    """Share of the captions seen whose text is dropped, which makes guidance possible; the model card's value."""
    image_drop: float = Field(default=0.0, ge=0, le=1)
    """Share whose noisy image is dropped, which only `guidance: dalle2` needs."""
    normaliser: Literal["sqrt_dim", "standardise", "whiten"] = "sqrt_dim"
    """How image embeddings are scaled for diffusion: to norm sqrt(D), or by statistics of the training rows."""
    embed_scale: float | None = Field(default=None, gt=0)
    """Norm that `sqrt_dim` scales to in place of sqrt(D)."""
    x0_clamp: Literal["none", "unit_box", "sphere"] = "none"
    """What estimates of x0 are held to while sampling: nothing, coordinates in [-1, 1], or unit embeddings."""
    training_clamp: bool = False
    """Scale the network's output to the norm of x0 before the loss."""
    init_clamp: bool = False
    """Scale the first noise of sampling to the norm of x0."""
    output_norm: Literal["unit", "none"] = "unit"
    """Norm of sampled embeddings: 1, or as they come."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.embed_scale is not None and self.normaliser != "sqrt_dim":
            raise ValueError(f"embed_scale has no meaning for normaliser={self.normaliser}")
        if self.training_clamp and self.normaliser != "sqrt_dim":
            raise ValueError(f"training_clamp needs normaliser=sqrt_dim, not {self.normaliser}")
        if self.noise_schedule in ("linear", "quadratic", "sigmoid") and self.timesteps <= 20:
            raise ValueError(f"timesteps={self.timesteps}: {self.noise_schedule} needs more than 20")
        return self


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


class SampleSettings(Settings):
    """How embeddings are drawn from a prior."""

    sampler: SamplerName = "ddim"
    """`ddpm`: ancestral. `ddim`: deterministic after the first noise. `dpmsolver++`: as good in fewer steps.
    `dalle2-ddim`: DALLE2-pytorch's."""
    steps: int = Field(default=64, ge=1)
    """Network evaluations for one draw; one fewer of `dalle2-ddim`."""
    guidance_scale: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """1 follows the text as trained; above 1 exaggerates what the text adds; 0 ignores it."""
    guidance: GuidanceName = "text"
    """What the other branch of guidance drops: the text, or the text and the noisy image as DALLE2-pytorch does."""


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
