"""Settings of a CLIP model, its preprocessing and its encoder."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ..settings import Location, Settings, expand_location, literal_location
from .names import common_name

Precision = Literal["float32", "bfloat16", "float16"]
"""Name of the torch dtype that both towers of a CLIP model compute in."""
_Positive = Annotated[float, Field(gt=0)]


class PreprocessSettings(Settings):
    """Image preprocessing settings for a CLIP model. Values that are set replace those that come with the weights."""

    mean: tuple[float, float, float] | None = None
    """Mean to subtract from each colour channel, on a scale of 0 to 1; null keeps the values that the weights were
    trained with."""
    std: tuple[_Positive, _Positive, _Positive] | None = None
    """Standard deviation of each colour channel, on a scale of 0 to 1. Pixels are divided by it after the mean is
    subtracted. null keeps the values that the weights were trained with."""
    interpolation: Literal["bicubic", "bilinear"] | None = None
    """Interpolation for resizing images; null keeps the method that the weights were trained with."""
    resize_mode: Literal["shortest", "longest", "squash"] | None = None
    """Method for making an image square: `shortest` crops the longer side, `longest` pads the shorter side, and
    `squash` changes the aspect ratio; null keeps the method that the weights were trained with."""
    size: int | None = Field(default=None, ge=1)
    """Side of the square input image in pixels; null keeps the model's size. If the size differs from the model's,
    open_clip interpolates the positional embeddings."""


class ClipSettings(Settings):
    """Settings of the CLIP model that computes the embeddings."""

    model: Location = "ViT-B-32"
    """Name of an open_clip model, or `local-dir:PATH` for a folder that open_clip or transformers wrote.

    - `open_clip:MODEL/TAG`: open_clip model and its weights, as clip-retrieval writes them.
    - `ViT-L/14`, `openai_clip:RN50`: model of OpenAI with OpenAI's weights. `openai_clip:FILE` takes an archive.
    - `hf_clip:ORG/NAME`: CLIP or SigLIP of transformers on the Hugging Face Hub.
    - `hf-hub:ORG/NAME`: model of open_clip on the Hugging Face Hub.
    - `priorkit:demo`: small model that priorkit includes.
    """
    pretrained: Location | None = "laion2b_s34b_b79k"
    """open_clip weights tag or path of a weight file; null if `model` has a prefix such as `hf-hub:`, because such a
    model includes its weights."""
    preprocess: PreprocessSettings | None = None
    """Image preprocessing values that replace the values recorded with the weights, or supply values that are not
    recorded; null sets no values."""
    quick_gelu: bool | None = None
    """Activation of the model: true for QuickGELU, false for GELU, null for the activation recorded with the weights.
    Set it if the activation is not recorded or the record is wrong. OpenAI's weights need true."""

    def overrides(self) -> dict[str, Any]:
        """Return the `preprocess` and `quick_gelu` settings that are not null, as a JSON-compatible dictionary."""
        preprocess = {} if self.preprocess is None else self.preprocess.model_dump(mode="json", exclude_none=True)
        values: dict[str, Any] = {"preprocess": preprocess} if preprocess else {}
        return values if self.quick_gelu is None else {**values, "quick_gelu": self.quick_gelu}

    def identity(self) -> dict[str, Any]:
        """Return the settings that affect the embeddings: `model`, `pretrained`, and those that `overrides` returns."""
        return {"model": self.model, "pretrained": self.pretrained, **self.overrides()}

    @model_validator(mode="before")
    @classmethod
    def _convert_name(cls, values: Any) -> Any:
        """Convert a name in another tool's spelling to open_clip's names of the model and its weights.

        Set `pretrained` to None if the model name has a prefix such as `hf-hub:`. Such a model includes its weights.

        Raises:
            ValueError: the name has an unknown prefix, or `pretrained` is set explicitly for a model with weights.
        """
        if not isinstance(values, dict) or not isinstance(values.get("model"), str):
            return values
        given = expand_location(values["model"])
        model, pretrained = common_name(given, values.get("pretrained"))
        if ":" in model:
            if pretrained is not None:
                raise ValueError(f"pretrained must be null: {model!r} brings its own weights")
            return {**values, "model": literal_location(model), "pretrained": None}
        return values if model == given else {**values, "model": model, "pretrained": pretrained}

    @model_validator(mode="after")
    def _require_weights(self) -> Self:
        if ":" not in self.model and not self.pretrained:
            raise ValueError(f"pretrained is needed for {self.model!r}: an open_clip tag or a checkpoint's path")
        return self


class EncoderSettings(Settings):
    """Arguments of `ClipEncoder`.

    Each pipeline stage creates them from its own settings. Users cannot set them directly in a recipe (settings file).
    """

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
    """True to require a text tower that provides token states, which are its outputs for each token. Loading fails if
    it does not."""
    compile: bool = False
    """True to compile the image tower with torch.compile."""
