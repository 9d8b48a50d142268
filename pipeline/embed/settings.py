"""Settings of the embed stage."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ..clip.settings import ClipSettings
from ..compute.settings import DeviceSettings


class EmbedSettings(DeviceSettings):
    """From images and captions to CLIP embeddings."""

    runtime_fields: ClassVar[frozenset[str]] = frozenset({"threads", "decode_threads"})

    clip: ClipSettings = ClipSettings()
    """The CLIP; its weights are hashed into the manifest."""
    engine: Literal["native", "clip-retrieval"] = "native"
    """`clip-retrieval` runs that package's own reader and model; an extra, and several times slower."""
    image: bool = True
    """Embed images; a sample without one fails."""
    text: bool = True
    """Embed captions; a sample without one fails."""
    input_format: Literal["auto", "webdataset", "files", "parquet"] = "auto"
    """What the input is: image shards, image and caption files, or tables; `auto` sees it by the names."""
    caption_column: str = "caption"
    """Column of tables that holds the caption."""
    image_column: str = "image"
    """Column of tables that holds the encoded image."""
    rows_per_shard: int | None = Field(default=None, ge=1)
    """Join image shards until they have so many samples; null: one for one, and 10,000 rows of other inputs."""
    token_states: bool = False
    """Store the text tower's token states too; they take tens of times the space of the pooled embedding."""
    batch_size: int = Field(default=64, ge=1)
    """Pairs in one forward pass; 64 fits a laptop, a GPU takes 256 and more."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the towers; what is stored is float16 always."""
    compile: bool = False
    """Compile the image tower with torch.compile: minutes at the start, which long runs on a GPU win back."""
    decode_threads: int = Field(default=2, ge=1)
    """Threads that decode and preprocess images beside the forward pass."""

    @model_validator(mode="after")
    def _something_is_embedded(self) -> Self:
        if not (self.image or self.text):
            raise ValueError("embed.image and embed.text are both false: nothing would be embedded")
        if self.token_states and not self.text:
            raise ValueError("embed.token_states=true needs embed.text=true")
        return self
