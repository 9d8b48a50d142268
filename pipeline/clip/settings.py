"""Settings of a CLIP: the source of its weights, its preprocessing, and how its encoder runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ..settings import Settings

Precision = Literal["float32", "bfloat16", "float16"]
"""Name of the torch dtype that a CLIP's towers compute in."""
_Positive = Annotated[float, Field(gt=0)]


class PreprocessSettings(Settings):
    """Preprocessing of images for a CLIP. Each value that is set replaces the one that comes with the weights."""

    mean: tuple[float, float, float] | None = None
    """Mean of each colour channel, 0 to 1, which is subtracted; null keeps the value that the weights were trained
    with."""
    std: tuple[_Positive, _Positive, _Positive] | None = None
    """Standard deviation of each colour channel, 0 to 1, which divides; null as for `mean`."""
    interpolation: Literal["bicubic", "bilinear"] | None = None
    """Interpolation used to resize images; null as for `mean`."""
    resize_mode: Literal["shortest", "longest", "squash"] | None = None
    """`shortest` crops the longer side, `longest` pads the shorter one, `squash` distorts; null as for `mean`."""
    size: int | None = Field(default=None, ge=1)
    """Side of the square input in pixels. A size other than the model's makes open_clip interpolate the positional
    embeddings; null keeps the model's size."""


class ClipSettings(Settings):
    """The CLIP that makes the embeddings."""

    model: str = "ViT-B-32"
    """open_clip model name, `hf-hub:ORG/NAME`, `local-dir:PATH` of a config with weights, or `priorkit:demo`."""
    pretrained: str | None = "laion2b_s34b_b79k"
    """open_clip weights tag, or the path of a checkpoint; null where `model` brings its own weights."""
    preprocess: PreprocessSettings | None = None
    """Preprocessing for a checkpoint that does not record it, or in place of the CLIP's own; null changes nothing."""
    quick_gelu: bool | None = None
    """Activation for a checkpoint that does not record it, or in place of the CLIP's own. OpenAI's weights need true;
    null changes nothing."""

    def overrides(self) -> dict[str, Any]:
        """Return preprocessing and activation as plain values; empty if neither is set."""
        preprocess = {} if self.preprocess is None else self.preprocess.model_dump(mode="json", exclude_none=True)
        values: dict[str, Any] = {"preprocess": preprocess} if preprocess else {}
        return values if self.quick_gelu is None else {**values, "quick_gelu": self.quick_gelu}

    def identity(self) -> dict[str, Any]:
        """Return the name and the overrides, as `Settings.identity` does; values that are not set are left out."""
        return {"model": self.model, "pretrained": self.pretrained, **self.overrides()}

    @model_validator(mode="before")
    @classmethod
    def _clear_default_tag(cls, values: Any) -> Any:
        """Drop the default tag for a model name with a scheme, since such a model brings its own weights."""
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
    """Arguments of `ClipEncoder`. Stages build them from their own resolved settings; recipes do not hold them."""

    clip: ClipSettings
    device: str
    """torch device: `cpu` or `cuda`."""
    threads: int = Field(ge=1)
    """CPU threads of torch."""
    dtype: Precision = "float32"
    """Precision of both towers."""
    batch_size: int = Field(default=64, ge=1)
    """Captions in one forward pass of the text tower."""
    token_states: bool = False
    """Fail on loading if the text tower gives no token states."""
    compile: bool = False
    """Compile the image tower with torch.compile."""
