"""Settings for the embed stage."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ..clip.settings import ClipSettings, EncoderSettings, Precision
from ..compute.settings import DeviceSettings


class EmbedSettings(DeviceSettings):
    """Settings for the embed stage, which turns images and captions into CLIP embeddings."""

    runtime_fields: ClassVar[frozenset[str]] = frozenset({"threads", "decode_threads"})

    clip: ClipSettings = ClipSettings()
    """CLIP model. The manifest records a hash of its weights."""
    engine: Literal["native", "clip-retrieval"] = "native"
    """Embedding engine. `clip-retrieval` runs the reader, the mapper (which computes the embeddings) and the writer of
    the clip-retrieval package. `priorkit doctor` prints the command that installs the package. It is several times
    slower than `native`."""
    image: bool = True
    """Embed images. If true, a sample without an image counts as failed."""
    text: bool = True
    """Embed captions. If true, a sample without a caption counts as failed."""
    input_format: Literal["auto", "webdataset", "files", "parquet"] = "auto"
    """Input format: image shards (`webdataset`), image and caption files (`files`), or tables (`parquet`). `auto`
    detects the format from the file names."""
    caption_column: str = "caption"
    """Name of the table column that contains the caption."""
    image_column: str = "image"
    """Name of the table column that contains the encoded image."""
    rows_per_shard: int | None = Field(default=None, ge=1)
    """Samples per embedding shard. Image shards are never split: consecutive image shards are joined until they contain
    at least this many samples. With null, the default, each image shard becomes one embedding shard, while files and
    tables are divided into shards of 10,000 samples."""
    token_states: bool = False
    """Store the output of CLIP's text tower for each token (the token states), in addition to the pooled embedding of
    each caption. Token states take tens of times as much space as pooled embeddings."""
    batch_size: int = Field(default=64, ge=1)
    """Number of images or captions per forward pass. 64 suits a laptop; use 256 or more on a GPU."""
    dtype: Precision = "float32"
    """Precision of the CLIP towers. Embeddings are always stored as float16."""
    compile: bool = False
    """Compile the image tower with torch.compile. Compilation takes minutes, so it only pays off in long GPU runs."""
    decode_threads: int = Field(default=2, ge=1)
    """Number of threads that decode and preprocess images while the model runs. The engine `clip-retrieval` uses one
    process instead."""

    def encoder_settings(self) -> EncoderSettings:
        """Return the settings that the CLIP encoder needs.

        Call this method only after `device: auto` has been replaced by an actual device; see `resolve`.
        """
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
