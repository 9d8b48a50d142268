"""Settings of a CLIP: where its weights are, and how it preprocesses images."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ..settings import Settings

_Positive = Annotated[float, Field(gt=0)]


class PreprocessSettings(Settings):
    """Preprocessing of images for a CLIP; a value that is set replaces the one that comes with the weights."""

    mean: tuple[float, float, float] | None = None
    """Mean of each colour channel, 0 to 1, that is subtracted; null takes that of the weights' training."""
    std: tuple[_Positive, _Positive, _Positive] | None = None
    """Standard deviation of each colour channel, 0 to 1, that is divided by; null as for `mean`."""
    interpolation: Literal["bicubic", "bilinear"] | None = None
    """How images are resized; null as for `mean`."""
    resize_mode: Literal["shortest", "longest", "squash"] | None = None
    """`shortest` crops the longer side, `longest` pads the shorter one, `squash` distorts; null as for `mean`."""
    size: int | None = Field(default=None, ge=1)
    """Side in pixels; another than the model's makes open_clip interpolate its positions. null is the model's."""


class ClipSettings(Settings):
    """Which CLIP makes the embeddings."""

    model: str = "ViT-B-32"
    """open_clip model name, `hf-hub:ORG/NAME`, `local-dir:PATH` of a config with weights, or `priorkit:demo`."""
    pretrained: str | None = "laion2b_s34b_b79k"
    """open_clip weights tag, or the path of a checkpoint; null where `model` brings its own weights."""
    preprocess: PreprocessSettings | None = None
    """Preprocessing where a checkpoint by path does not say, or in place of the CLIP's own; null leaves it as it is."""
    quick_gelu: bool | None = None
    """Activation where a checkpoint by path does not say (OpenAI's need true), or in place of the CLIP's own."""

    def overrides(self) -> dict[str, Any]:
        """Preprocessing and activation that are set, as plain values; empty if neither is."""
        preprocess = {} if self.preprocess is None else self.preprocess.model_dump(mode="json", exclude_none=True)
        found: dict[str, Any] = {"preprocess": preprocess} if preprocess else {}
        return found if self.quick_gelu is None else {**found, "quick_gelu": self.quick_gelu}

    def identity(self) -> dict[str, Any]:
        """Name and overrides, as `Settings.identity`; a setting that is not set is not part of it."""
        return {"model": self.model, "pretrained": self.pretrained, **self.overrides()}

    @model_validator(mode="before")
    @classmethod
    def _schemes_bring_weights(cls, values: Any) -> Any:
        """A model named with a scheme has its own weights: the default tag does not apply to it."""
        if isinstance(values, dict) and ":" in str(values.get("model", "")):
            if values.get("pretrained") is not None:
                raise ValueError(f"pretrained must be null: {values['model']!r} brings its own weights")
            return {**values, "pretrained": None}
        return values

    @model_validator(mode="after")
    def _names_need_weights(self) -> Self:
        if ":" not in self.model and not self.pretrained:
            raise ValueError(f"pretrained is needed for {self.model!r}: an open_clip tag or a checkpoint's path")
        return self
