"""Settings for the embed stage."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from ..clip.settings import ClipSettings, EncoderSettings, Precision
from ..compute.settings import DeviceSettings
from ..contract.samples import CAPTION_EXTENSION, SampleFiles

DEFAULT_CAPTION_COLUMN = "caption"
"""Column of tables that contains the caption if `caption_column` is not set."""
DEFAULT_IMAGE_COLUMN = "image"
"""Column of tables that contains the encoded image if `image_column` is not set."""
_SAMPLE_FILES = ("image_extensions", "caption_extension", "caption_key")
"""Settings that identify the files of a sample. Manifests contain them only if they are set."""


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
    caption_column: str | None = None
    """Name of the table column that contains the caption; it may contain a list of captions per row. The table is the
    input itself, the table `NAME.parquet` next to each tar `NAME.tar`, or the metadata file of a Hugging Face image
    folder. With null, tables are read by the column `caption`, and captions of tars and files come from caption
    files."""
    caption_key: str | None = Field(default=None, min_length=1)
    """Key of the caption in the JSON file that each sample has in a tar or folder. Dots separate nested keys. The value
    is text or a list of captions. With null, captions are text files."""
    caption_extension: str | None = Field(default=None, min_length=1)
    """Extension of caption files in a tar or folder, which is everything after the first dot of the file name in a tar,
    such as `outputs.txt`. With null, it is `txt`, or `json` if `caption_key` is set."""
    image_extensions: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Extensions of images in a tar or folder, such as `input.jpg`. If a sample has several such files, the first
    extension of this list is used. With null, these are the extensions of common image formats."""
    image_column: str | None = None
    """Name of the table column that contains the encoded image. With null, it is `image`."""
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

    def identity(self) -> dict[str, Any]:
        """Return the settings that affect the output. Settings of a sample's files are left out if they are not set."""
        dumped = super().identity()
        dumped["caption_column"] = self.caption_column or DEFAULT_CAPTION_COLUMN
        dumped["image_column"] = self.image_column or DEFAULT_IMAGE_COLUMN
        return {name: value for name, value in dumped.items() if value is not None or name not in _SAMPLE_FILES}

    def sample_files(self) -> SampleFiles:
        """Return the rules that identify the image and the captions among the files of a sample."""
        default = CAPTION_EXTENSION if self.caption_key is None else "json"
        return SampleFiles(self.image_extensions or (), self.caption_extension or default, self.caption_key)

    @field_validator("image_extensions", mode="before")
    @classmethod
    def _list_extensions(cls, value: Any) -> Any:
        """Split text such as `jpg,png` into a list, and write extensions in lower case, without a leading dot."""
        listed = value.split(",") if isinstance(value, str) else value
        if not isinstance(listed, list | tuple) or not all(isinstance(each, str) for each in listed):
            return value
        return tuple(each.strip().removeprefix(".").lower() for each in listed)

    @field_validator("caption_extension", mode="after")
    @classmethod
    def _plain_extension(cls, value: str | None) -> str | None:
        return None if value is None else value.removeprefix(".").lower()

    @model_validator(mode="after")
    def _captions_have_one_place(self) -> Self:
        for name in ("caption_key", "caption_extension", "caption_column"):
            if getattr(self, name) is not None and not self.text:
                raise ValueError(f"embed.{name} has no effect with embed.text=false; leave one of them out")
        for name in ("caption_key", "caption_extension"):
            if getattr(self, name) is not None and self.caption_column is not None:
                raise ValueError(
                    f"embed.caption_column reads captions from a table, embed.{name} from files; set one of them"
                )
        if self.image_extensions is not None and not self.image:
            raise ValueError("embed.image_extensions has no effect with embed.image=false; leave one of them out")
        files = self.sample_files()
        if files.caption_extension.rpartition(".")[2] == "json" and self.caption_key is None:
            raise ValueError(
                "embed.caption_extension=json: set embed.caption_key to the key of the caption in the JSON files"
            )
        if "" in (*files.image_extensions, files.caption_extension):
            raise ValueError("embed.image_extensions and embed.caption_extension must not be empty")
        if files.caption_extension in files.image_extensions:
            raise ValueError(f"embed.caption_extension={files.caption_extension} is also in embed.image_extensions")
        return self

    @model_validator(mode="after")
    def _embed_something(self) -> Self:
        if not (self.image or self.text):
            raise ValueError("embed.image and embed.text are both false: nothing would be embedded")
        if self.token_states and not self.text:
            raise ValueError("embed.token_states=true needs embed.text=true")
        return self
