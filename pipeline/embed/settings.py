"""Settings of the embed stage."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ..clip.settings import ClipSettings, EncoderSettings, Precision
from ..compute.settings import DeviceSettings


class EmbedSettings(DeviceSettings):
    """Settings of the stage that turns images and captions into CLIP embeddings."""

    runtime_fields: ClassVar[frozenset[str]] = frozenset({"threads", "decode_threads"})

    clip: ClipSettings = ClipSettings()
    """The CLIP; the manifest records a hash of its weights."""
    engine: Literal["native", "clip-retrieval"] = "native"
    """`clip-retrieval` runs that package's own reader and model; it is an extra, and several times slower."""
    image: bool = True
    """Embed images; a sample without an image fails."""
    text: bool = True
    """Embed captions; a sample without a caption fails."""
    input_format: Literal["auto", "webdataset", "files", "parquet"] = "auto"
    """Format of the input: image shards, image and caption files, or tables; `auto` detects it from file names."""
    caption_column: str = "caption"
    """Column of tables that holds the caption."""
    image_column: str = "image"
    """Column of tables that holds the encoded image."""
    rows_per_shard: int | None = Field(default=None, ge=1)
    """Samples in each embedding shard; image shards are joined to reach them. null keeps each image shard as it is,
    and puts 10,000 rows of any other input in a shard."""
    token_states: bool = False
    """Store the text tower's token states too; they take tens of times the space of the pooled embedding."""
    batch_size: int = Field(default=64, ge=1)
    """Pairs in one forward pass; 64 fits a laptop, and a GPU takes 256 or more."""
    dtype: Precision = "float32"
    """Precision of the towers; embeddings are always stored as float16."""
    compile: bool = False
    """Compile the image tower with torch.compile, which takes minutes at the start and pays off in long GPU runs."""
    decode_threads: int = Field(default=2, ge=1)
    """Threads that decode and preprocess images during the forward pass."""

    def encoder_settings(self) -> EncoderSettings:
        """Return the part of resolved settings that the CLIP encoder needs."""
        return EncoderSettings(
            clip=self.clip,
            device=self.device,
            threads=self.threads,
            dtype=self.dtype,
            batch_size=self.batch_size,
            token_states=self.token_states,
            compile=self.compile,
        )

    @model_validator(mode="after")
    def _embed_something(self) -> Self:
        if not (self.image or self.text):
            raise ValueError("embed.image and embed.text are both false: nothing would be embedded")
        if self.token_states and not self.text:
            raise ValueError("embed.token_states=true needs embed.text=true")
        return self
