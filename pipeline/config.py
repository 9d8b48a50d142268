"""Settings of the whole pipeline: folders, and the section of each stage.

A setting that changes the bytes that a stage writes is part of the stage's identity. All others are named in
`runtime_fields` and may differ from run to run.
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
    """Output folder of each stage: a local path or fsspec URL; `$NAME` and `${NAME}` are environment variables."""

    images: Location = "data/images"
    """Webdataset shards of `download`."""
    embeddings: Location = "data/embeddings"
    """Embedding shards of `embed`."""
    prior: Location = "data/prior"
    """The trained prior of `train`."""
    evaluation: Location = "data/evaluation"
    """Metrics of `evaluate`."""

    @model_validator(mode="after")
    def _require_distinct_folders(self) -> Self:
        folders = [str(Path(value)) for value in self.model_dump().values()]
        if len(set(folders)) < len(folders):
            raise ValueError(f"each stage needs a folder of its own, got {folders}")
        return self


class PipelineSettings(Settings):
    """Every setting of the pipeline, under the names that recipes use."""

    urls: Location = "urls.parquet"
    """The URL list: a local path or an fsspec URL, with environment variables as in `folders`."""
    folders: FolderSettings = FolderSettings()
    """Output folders."""
    compute: ComputeSettings = ComputeSettings()
    """Place of the work: this process, or workers on a Ray cluster."""
    download: DownloadSettings = DownloadSettings()
    """Settings of `download`: URLs to images."""
    embed: EmbedSettings = EmbedSettings()
    """Settings of `embed`: images to embeddings."""
    read: ReadSettings = ReadSettings()
    """Choice of the rows for training, validation and test."""
