"""Settings for the network family `causal-transformer`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from .family import FamilySettings
from .function_version import LATEST_FUNCTION, FunctionVersion


class NetworkSettings(FamilySettings):
    """Settings for the size and structure of a causal transformer. They have the same names as in DALLE2-pytorch."""

    later_fields: ClassVar[frozenset[str]] = frozenset({"family"})

    family: Literal["causal-transformer"] = "causal-transformer"
    """Network family. `causal-transformer` is the network of DALLE2-pytorch and of LAION's prior."""
    width: int = Field(default=512, ge=8)
    """Width of the token stream. It can differ from the embedding size unless `final_proj` is false."""
    depth: int = Field(default=6, ge=1, le=1000)
    """Number of transformer layers."""
    heads: int = Field(default=8, ge=1)
    """Number of attention heads. All heads share the same keys and values (multi-query attention)."""
    dim_head: int = Field(default=64, ge=2)
    """Width of an attention head. The default is the same as in DALLE2-pytorch."""
    ff_mult: float = Field(default=4, gt=0)
    """Inner width of the feed-forward layers, as a multiple of `width`."""
    attn_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout rate of attention weights. A rate above 0 makes training results depend on the number of workers."""
    ff_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout rate in the feed-forward layers. A rate above 0 makes training results depend on the number of
    workers."""
    max_text_len: int = Field(default=0, ge=0)
    """Maximum number of token states (per-token outputs of the text encoder) used per caption, in addition to the
    pooled text embedding; 0 uses no token states."""
    num_timesteps: int | None = Field(default=None, ge=2)
    """Number of learned timestep embeddings. If null, timestep embeddings are computed from sinusoids with a small
    MLP."""
    num_time_embeds: int = Field(default=1, ge=1)
    """Number of tokens that represent the timestep."""
    num_image_embeds: int = Field(default=1, ge=1)
    """Number of tokens that represent the noisy image embedding."""
    num_text_embeds: int = Field(default=1, ge=1)
    """Number of tokens that represent the pooled text embedding."""
    self_cond: bool = False
    """Use self-conditioning: the previous x0 estimate is an additional input (Chen et al. 2022). Training then takes
    1.5 times as long."""
    rotary_emb: bool = True
    """Use rotary position embedding in addition to the relative position bias."""
    norm_in: bool = False
    """Apply layer normalisation to the tokens before the first layer."""
    norm_out: bool = True
    """Apply layer normalisation to the output of the last layer."""
    final_proj: bool = True
    """Project the prediction to the embedding size. If false, `width` must equal the embedding size."""
    normformer: bool = False
    """Add a second layer norm inside each feed-forward layer (NormFormer), as in LAION's DALLE2-pytorch prior."""
    function_version: str = LATEST_FUNCTION
    """DALLE2-pytorch release that the network reproduces. Set an older release only to use a checkpoint from that
    release."""

    @property
    def max_token_states(self) -> int:
        """Maximum number of token states per caption; 0 if none are used."""
        return self.max_text_len

    @property
    def text_tokens(self) -> int:
        """Maximum number of tokens that the text of a caption takes in the network."""
        return self.num_text_embeds + self.max_text_len

    @property
    def draw_tokens(self) -> int:
        """Number of tokens that a draw takes in the network: timestep, noisy image, self-conditioning and query."""
        return self.num_time_embeds + self.num_image_embeds + self.self_cond + 1

    @property
    def evaluations(self) -> float:
        """Mean number of evaluations per draw in training: half of the draws of a self-conditioned network need two."""
        return 1.5 if self.self_cond else 1.0

    @property
    def function(self) -> FunctionVersion:
        """DALLE2-pytorch release that the network reproduces."""
        return FunctionVersion.parse(self.function_version)

    @property
    def drops_text(self) -> bool:
        """True if learned vectors can replace a dropped text."""
        return self.function.has_null_tokens

    @property
    def drops_pooled_text(self) -> bool:
        """True if learned vectors also replace the pooled embedding of a dropped text."""
        return self.function.has_null_text

    @property
    def drops_image(self) -> bool:
        """True if a learned vector can replace a dropped noisy image."""
        return self.function.has_null_tokens

    @property
    def most_timesteps(self) -> int | None:
        """Number of learned timestep embeddings; None if they are computed."""
        return self.num_timesteps

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
