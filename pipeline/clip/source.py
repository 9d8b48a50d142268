"""Source of a CLIP's weights: a bundled or local folder, a file, an open_clip tag, or a model hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError
from .files import CONFIG_NAME, find_weights, hash_files
from .settings import ClipSettings

BUNDLED_PREFIX = "priorkit:"
LOCAL_PREFIX = "local-dir:"
HUB_PREFIX = "hf-hub:"
"""Prefixes of model names: for a folder in this package, a folder on this machine, and a repository on the hub."""
_RECIPES = Path(__file__).resolve().parents[2] / "recipes"
"""Folder that holds the bundled CLIPs."""

SourceKind = Literal["bundled", "folder", "file", "hub", "tag"]
_FOLDER_KINDS: dict[str, SourceKind] = {BUNDLED_PREFIX: "bundled", LOCAL_PREFIX: "folder"}


@dataclass(frozen=True)
class ClipSource:
    """Source of a CLIP's weights, which `parse_source` determines from the settings."""

    kind: SourceKind
    """Kind of source. `tag` is an open_clip model with a tag.

    `hub` stands for every model name with a prefix other than `priorkit:` and `local-dir:`.
    """
    folder: Path | None = None
    """Folder with config and weights, if `kind` is `bundled` or `folder`."""
    file: Path | None = None
    """Weight file, if `kind` is `file`."""

    def describe(self, settings: ClipSettings) -> dict[str, Any]:
        """Return the model's name, the overrides, and either the tag or the SHA-256 of each local file.

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
    """Determine the source of a CLIP's weights from its settings, without loading anything.

    Args:
        settings: the CLIP's settings.
        is_tag: function that takes a model and a tag, and returns whether open_clip knows the tag for that model. It
            is called only for a file name without a folder, because a tag takes precedence over a file of that name.

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
    """Return settings that find the CLIP from any working directory: the given settings with absolute paths."""
    model, pretrained = settings.model, settings.pretrained
    if model.startswith(LOCAL_PREFIX):
        model = f"{LOCAL_PREFIX}{Path(model.removeprefix(LOCAL_PREFIX)).resolve()}"
    if pretrained is not None and Path(pretrained).is_file():
        # keep links: the hub's cache links readable names to files that have no suffix and no config beside them
        pretrained = os.path.abspath(pretrained)
    return {**settings.identity(), "model": model, "pretrained": pretrained}
