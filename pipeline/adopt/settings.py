"""Settings for the adopt stage."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator
from typing_extensions import Self

from ..clip.settings import ClipSettings
from ..settings import Settings

NO_METADATA = "none"
"""Value of `metadata` that leaves all tables out."""


class AdoptSettings(Settings):
    """Settings for the adopt stage, which turns embeddings of other programs into embedding shards.

    A prior translates embeddings from one space, the *source*, into another space, the *target*. With CLIP, the source
    is the text embedding and the target is the image embedding.
    """

    source: str | None = None
    """Source embeddings: a folder or `.npy` file, a column of the tables, or an array of the `.npz` files. null takes
    the one whose name speaks of text, such as `text_emb`."""
    target: str | None = None
    """Target embeddings, named like `source`. null takes the ones whose name speaks of images, such as `img_emb`."""
    metadata: str | None = None
    """Folder or file of the tables with keys and captions. null takes the tables beside the embeddings; `none` leaves
    them out."""
    key_column: str | None = None
    """Column of the tables that identifies a row. null takes the first of `key`, `uid`, `id`, `image_id`, `__key__` and
    `image_path`; without any, keys are made from the file name and the row number."""
    caption_column: str | None = None
    """Column of the tables with the captions. null takes the first of `caption`, `text`, `alt`, `title` and `prompt`,
    in upper or lower case."""
    clip: ClipSettings | None = None
    """CLIP model that made the embeddings; null if another model did."""
    not_clip: str | None = Field(default=None, min_length=1)
    """Name of the model or pair of models that made the embeddings, if it is not a CLIP model."""
    normalise: bool = False
    """Scale each embedding to norm 1. The original norms are stored in the metadata in any case."""
    skip_invalid: bool = False
    """Leave out rows whose embedding is missing, zero, NaN or infinite, and list them as failures. If false, such a row
    is an error."""
    rows_per_shard: int = Field(default=1_000_000, ge=1)
    """Maximum number of rows of a shard. A larger file is divided into several shards."""
    in_place: bool = False
    """Write only a manifest, beside the files. The files themselves are neither changed nor copied."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if (self.clip is None) == (self.not_clip is None):
            raise ValueError(
                "say which CLIP made the embeddings (--clip ViT-L-14 --clip-pretrained openai), or that none did "
                "(--not-clip NAME)"
            )
        if self.in_place:
            needless = [name for name in _COPY_ONLY if name in self.model_fields_set and getattr(self, name)]
            if needless:
                raise ValueError(
                    f"{needless[0]} has no effect with in_place, which leaves the files as they are; adopt into a "
                    "folder instead"
                )
        return self

    def manifest_settings(self, described_clip: dict[str, Any] | None) -> dict[str, Any]:
        """Return the settings to record in the manifest, without the locations of folders.

        Args:
            described_clip: description of the CLIP model's weights, from `clip_source`; None if no CLIP is declared.
        """
        names = {"key_column", "caption_column", "not_clip", "normalise", "skip_invalid", "rows_per_shard", "in_place"}
        return {**self.model_dump(mode="json", include=names), "clip": described_clip}


_COPY_ONLY = ("normalise", "skip_invalid", "key_column", "caption_column", "rows_per_shard")
"""Settings that change what is written, and therefore do not go with `in_place`."""
