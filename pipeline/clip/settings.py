"""CLIP settings: where the weights come from, preprocessing, and the encoder's arguments."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ..settings import Settings

Precision = Literal["float32", "bfloat16", "float16"]
"""Name of the torch dtype that both towers of a CLIP compute in."""
_Positive = Annotated[float, Field(gt=0)]


class PreprocessSettings(Settings):
    """Image preprocessing settings for a CLIP. A value set here overrides the value that comes with the weights."""

    mean: tuple[float, float, float] | None = None
    """Mean of each colour channel, from 0 to 1, which is subtracted; null keeps the value that the weights were
    trained with."""
    std: tuple[_Positive, _Positive, _Positive] | None = None
    """Standard deviation of each colour channel, on a scale of 0 to 1. After the mean is subtracted, pixels are divided
    by it. null keeps the value that the weights were trained with."""
    interpolation: Literal["bicubic", "bilinear"] | None = None
    """Interpolation for resizing images; null keeps the method that the weights were trained with."""
    resize_mode: Literal["shortest", "longest", "squash"] | None = None
    """Method for making an image square: `shortest` crops the longer side, `longest` pads the shorter side, and
    `squash` distorts the image. null keeps the method that the weights were trained with."""
    size: int | None = Field(default=None, ge=1)
    """Side of the square input in pixels; null keeps the model's size. For any other size, open_clip interpolates the
    positional embeddings."""


class ClipSettings(Settings):
    """Settings of the CLIP that computes the embeddings."""

    model: str = "ViT-B-32"
    """open_clip model name, `hf-hub:ORG/NAME`, `local-dir:PATH` of a config with weights, or `priorkit:demo`."""
    pretrained: str | None = "laion2b_s34b_b79k"
    """open_clip weights tag or checkpoint path; null if `model` comes with weights."""
    preprocess: PreprocessSettings | None = None
    """Preprocessing for a checkpoint that records none, or to override recorded values; null overrides nothing."""
    quick_gelu: bool | None = None
    """True for QuickGELU, false for GELU. Set it for a checkpoint that does not record its activation, or to override
    the recorded activation; null overrides nothing. OpenAI's weights need true."""

    def overrides(self) -> dict[str, Any]:
        """Return preprocessing and activation as plain values, without values that are not set."""
        preprocess = {} if self.preprocess is None else self.preprocess.model_dump(mode="json", exclude_none=True)
        values: dict[str, Any] = {"preprocess": preprocess} if preprocess else {}
        return values if self.quick_gelu is None else {**values, "quick_gelu": self.quick_gelu}

    def identity(self) -> dict[str, Any]:
        """Return the model, tag and overrides, as `Settings.identity` does. Overrides that are not set are left out."""
        return {"model": self.model, "pretrained": self.pretrained, **self.overrides()}

    @model_validator(mode="before")
    @classmethod
    def _clear_default_tag(cls, values: Any) -> Any:
        """Drop the default tag if the model name has a prefix such as `hf-hub:`, since it then includes the weights."""
        if isinstance(values, dict) and ":" in str(values.get("model", "")):
            if values.get("pretrained") is not None:
                raise ValueError(f"pretrained must be null: {values['model']!r} brings its own weights")
            return {**values, "pretrained": None}
        return values

    @model_validator(mode="after")
    def _require_weights(self) -> Self:
        if ":" not in self.model and not self.pretrained:
            raise ValueError(f"pretrained is needed for {self.model!r}: an open_clip tag or a checkpoint's path")
        return self


class EncoderSettings(Settings):
    """Arguments of `ClipEncoder`. Stages create them from their own resolved settings. They are not part of recipes."""

    clip: ClipSettings
    device: str
    """torch device: `cpu` or `cuda`."""
    threads: int = Field(ge=1)
    """Number of CPU threads that torch uses."""
    dtype: Precision = "float32"
    """Dtype that both towers compute in."""
    batch_size: int = Field(default=64, ge=1)
    """Number of captions per forward pass of the text tower."""
    token_states: bool = False
    """Raise an error on loading if the text tower provides no token states."""
    compile: bool = False
    """Compile the image tower with torch.compile."""
