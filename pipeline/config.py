"""Settings for the whole pipeline: the URL list, the folders, the workers, and one section per stage.

Settings that affect the output of a stage must stay the same when the stage is resumed. All other settings are listed
in `runtime_fields` and may differ between runs.
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
    """Output folder of each stage, as a local path or an fsspec URL. A leading `~` and environment
    variables (`$NAME`) are expanded."""

    images: Location = "data/images"
    """Folder to which `download` writes webdataset shards."""
    embeddings: Location = "data/embeddings"
    """Folder to which `embed` writes embedding shards."""
    prior: Location = "data/prior"
    """Folder to which `train` writes the prior."""
    evaluation: Location = "data/evaluation"
    """Folder to which `evaluate` writes metrics."""

    @model_validator(mode="after")
    def _require_distinct_folders(self) -> Self:
        folders = [str(Path(value)) for value in self.model_dump().values()]
        if len(set(folders)) < len(folders):
            raise ValueError(f"each stage needs a folder of its own, got {folders}")
        return self


class PipelineSettings(Settings):
    """Settings of the data pipeline: URL list, folders, workers, download, embedding, and reading of the embeddings.

    The fields have the names that recipes use.
    """

    urls: Location | None = None
    """URL list, as a local path or an fsspec URL. A leading `~` and environment variables (`$NAME`) are expanded. If
    null, a run begins with the first of `folders.images` and `folders.embeddings` that the recipe names; if it names
    neither, the list is `urls.parquet`."""
    folders: FolderSettings = FolderSettings()
    """Output folders of the stages."""
    compute: ComputeSettings = ComputeSettings()
    """Settings that control where the work runs: in this process, or in workers on a Ray cluster."""
    download: DownloadSettings = DownloadSettings()
    """Settings for `download`, which turns URLs into images."""
    embed: EmbedSettings = EmbedSettings()
    """Settings for `embed`, which turns images and captions into embeddings."""
    read: ReadSettings = ReadSettings()
    """Settings for reading embeddings, such as the split of the rows into training, validation and test."""
