"""Source of a CLIP model's weights: a bundled or local folder, a file, an open_clip tag, or a model hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError
from ..settings import literal_location
from .files import CONFIG_NAME, find_weights, hash_files
from .settings import ClipSettings

BUNDLED_PREFIX = "priorkit:"
LOCAL_PREFIX = "local-dir:"
HUB_PREFIX = "hf-hub:"
"""Prefix of the names of models that are loaded from the Hugging Face Hub.

Names with the prefix `BUNDLED_PREFIX` refer to a folder in this package, and names with the prefix `LOCAL_PREFIX` refer
to any other local folder.
"""
_RECIPES = Path(__file__).resolve().parents[2] / "recipes"
"""Folder that contains the bundled CLIP models."""

SourceKind = Literal["bundled", "folder", "file", "hub", "tag"]
_FOLDER_KINDS: dict[str, SourceKind] = {BUNDLED_PREFIX: "bundled", LOCAL_PREFIX: "folder"}


@dataclass(frozen=True)
class ClipSource:
    """Source of a CLIP model's weights: a bundled or local folder, a weight file, an open_clip tag, or a model hub.

    `parse_source` determines it from the settings.
    """

    kind: SourceKind
    """Kind of source. It depends on the prefix of the model name, or on the weights if there is no prefix.

    - `bundled`: the name has the prefix `priorkit:`.
    - `folder`: the name has the prefix `local-dir:`.
    - `hub`: the name has any other prefix.
    - `file`: the name has no prefix, and the weights come from a file.
    - `tag`: the name has no prefix, and the weights come from an open_clip tag.
    """
    folder: Path | None = None
    """Folder with the config and weights if `kind` is `bundled` or `folder`, otherwise None."""
    file: Path | None = None
    """Weight file if `kind` is `file`, otherwise None."""

    def describe(self, settings: ClipSettings) -> dict[str, Any]:
        """Return a dictionary that describes the source without local paths, so that it is the same on any machine.

        It contains the model name, the preprocessing and activation overrides in the settings, and either the tag or
        the SHA-256 of each local file. For a local folder, the model name is `local-dir`, without the path.

        Raises:
            InputError: a folder has no usable weights.
        """
        overrides = settings.overrides()
        if self.folder is not None:
            model = settings.model if self.kind == "bundled" else LOCAL_PREFIX.rstrip(":")
            files = [find_weights(self.folder), self.folder / CONFIG_NAME]
            return {"model": model, "files": hash_files(files), **overrides}
        if self.file is not None:
            config = self.file.parent / CONFIG_NAME
            files = [self.file, config] if config.is_file() else [self.file]
            return {"model": settings.model, "files": hash_files(files), **overrides}
        return {"model": settings.model, "pretrained": settings.pretrained, **overrides}


def parse_source(settings: ClipSettings, is_tag: Callable[[str, str], bool]) -> ClipSource:
    """Determine the source of a CLIP model's weights from its settings, without loading anything.

    Args:
        settings: settings of the model.
        is_tag: function that takes a model name and a tag, and returns True if open_clip knows the tag for that model.
            It is called only if `pretrained` is the name of a file in the working directory. If the name is also a
            tag, the tag is used instead of the file.

    Raises:
        InputError: a local file or folder is missing, or a folder has no config.
    """
    for prefix, kind in _FOLDER_KINDS.items():
        if settings.model.startswith(prefix):
            folder = (_RECIPES if kind == "bundled" else Path()) / settings.model.removeprefix(prefix)
            if not (folder / CONFIG_NAME).is_file():
                raise InputError(f"embed.clip.model={settings.model}: {folder} holds no {CONFIG_NAME}")
            return ClipSource(kind, folder=folder)
    name = settings.pretrained
    if name and Path(name).is_file() and (os.path.sep in name or not is_tag(settings.model, name)):
        return ClipSource("file", file=Path(name))
    if name and os.path.sep in name:
        raise InputError(f"embed.clip.pretrained={name}: no such file")
    return ClipSource("hub" if ":" in settings.model else "tag")


def clip_location(settings: ClipSettings) -> dict[str, Any]:
    """Return the settings needed to load the same CLIP model again from any working directory, as a dictionary.

    They are the settings that affect the embeddings, with local paths made absolute. Dollar signs are escaped, because
    `ClipSettings` expands environment variables.
    """
    model, pretrained = settings.model, settings.pretrained
    if model.startswith(LOCAL_PREFIX):
        model = f"{LOCAL_PREFIX}{Path(model.removeprefix(LOCAL_PREFIX)).resolve()}"
    if pretrained is not None and Path(pretrained).is_file():
        # do not resolve links: in the hub's cache, their targets have no suffix, and no config beside them
        pretrained = os.path.abspath(pretrained)
    escaped = None if pretrained is None else literal_location(pretrained)
    return {**settings.identity(), "model": literal_location(model), "pretrained": escaped}
