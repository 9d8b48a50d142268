"""Settings for the network family `prior-transformer`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ..family import FamilySettings

ActivationName = Literal["silu", "swish", "mish", "gelu", "relu"]
NormType = Literal["layer"]


class PriorTransformerSettings(FamilySettings):
    """Settings for the size and structure of a `PriorTransformer`. They have the same names as in diffusers."""

    family: Literal["prior-transformer"] = "prior-transformer"
    """Network family. Priors of this family take text embeddings that are not normalised, and token states."""
    num_attention_heads: int = Field(default=8, ge=1)
    """Number of attention heads, each with its own keys and values. Karlo and Kandinsky use 32."""
    attention_head_dim: int = Field(default=64, ge=1)
    """Width of an attention head. The width of the token stream is the number of heads times this width."""
    num_layers: int = Field(default=6, ge=1, le=1000)
    """Number of transformer layers. Karlo and Kandinsky use 20."""
    num_embeddings: int = Field(default=77, ge=1)
    """Maximum number of token states (per-token outputs of the text encoder) used per caption."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout rate after attention and in the feed-forward layers. A rate above 0 makes training results depend on the
    number of workers."""
    time_embed_act_fn: ActivationName = "silu"
    """Activation function of the MLP that computes timestep embeddings."""
    time_embed_dim: int | None = Field(default=None, ge=1)
    """Inner width of the MLP that computes timestep embeddings. Null: the width of the token stream."""
    norm_in_type: NormType | None = None
    """Norm of the tokens before the first layer: `layer` for layer norm, or null for none."""
    embedding_proj_norm_type: NormType | None = None
    """Norm of the pooled text embedding before its projection: `layer` for layer norm, or null for none."""
    time_token: bool = True
    """Give the network a token for the timestep. ECLIPSE's priors have none, because they are evaluated once."""

    @property
    def width(self) -> int:
        """Width of the token stream."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def additional_embeddings(self) -> int:
        """Number of tokens besides the token states: text embedding, timestep (if any), noisy image and query."""
        return 4 if self.time_token else 3

    @property
    def max_token_states(self) -> int:
        """Maximum number of token states per caption."""
        return self.num_embeddings

    @property
    def needs_token_states(self) -> bool:
        """True."""
        return True

    @property
    def text_tokens(self) -> int:
        """Maximum number of tokens that the text of a caption takes in the network."""
        return self.num_embeddings + 1

    @property
    def draw_tokens(self) -> int:
        """Number of tokens that a draw takes in the network: timestep (if any), noisy image and query."""
        return self.additional_embeddings - 1

    @property
    def needs_empty_text(self) -> bool:
        """True."""
        return True

    @property
    def uses_time(self) -> bool:
        """True if the network has a token for the timestep."""
        return self.time_token

    @property
    def drops_text(self) -> bool:
        """True: the CLIP's encoding of the empty text stands for a dropped text."""
        return True

    @property
    def takes_raw_text(self) -> bool:
        """True: text embeddings are not normalised."""
        return True

    @model_validator(mode="after")
    def _time_has_a_token(self) -> Self:
        if not self.time_token and (self.time_embed_dim is not None or self.time_embed_act_fn != "silu"):
            raise ValueError(
                "time_embed_dim and time_embed_act_fn have no effect with time_token=false; leave them out"
            )
        return self
