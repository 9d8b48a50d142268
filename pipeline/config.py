"""Settings of the whole pipeline: folders, and the sections of each package.

A setting either changes the bytes that a stage writes, and is then part of that stage's identity, or is named in
`runtime_fields`, and may differ from run to run.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import model_validator
from typing_extensions import Self

from .compute.settings import ComputeSettings
from .download.settings import DownloadSettings
from .embed.settings import EmbedSettings
from .read.settings import ReadSettings
from .settings import Location, Settings


class FolderSettings(Settings):
    """Where each stage writes: local paths or fsspec URLs; `$NAME` and `${NAME}` stand for environment variables."""

    images: Location = "data/images"
    """Webdataset shards of `download`."""
    embeddings: Location = "data/embeddings"
    """Embedding shards of `embed`."""
    prior: Location = "data/prior"
    """The trained prior of `train`."""
    evaluation: Location = "data/evaluation"
    """Metrics of `evaluate`."""

    @model_validator(mode="after")
    def _folders_are_apart(self) -> Self:
        folders = [str(Path(value)) for value in self.model_dump().values()]
        if len(set(folders)) < len(folders):
            raise ValueError(f"each stage needs a folder of its own, got {folders}")
        return self


class PipelineSettings(Settings):
    """Every setting of the pipeline, under the names that recipes use."""

    urls: Location = "urls.parquet"
    """The list of URLs: a local path or an fsspec URL; environment variables as in `folders`."""
    folders: FolderSettings = FolderSettings()
    """Where each stage writes."""
    compute: ComputeSettings = ComputeSettings()
    """Where download, embed and evaluate work on their shards, and where training runs."""
    download: DownloadSettings = DownloadSettings()
    """From URLs to images."""
    embed: EmbedSettings = EmbedSettings()
    """From images to embeddings."""
    read: ReadSettings = ReadSettings()
    """Which rows train, validate and test."""
