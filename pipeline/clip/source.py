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
"""Schemes of model names: a folder of this package, a folder of this machine, and a repository of the hub."""
_RECIPES = Path(__file__).resolve().parents[2] / "recipes"
"""Folder that holds the bundled CLIPs."""

SourceKind = Literal["bundled", "folder", "file", "hub", "tag"]
_FOLDER_KINDS: dict[str, SourceKind] = {BUNDLED_PREFIX: "bundled", LOCAL_PREFIX: "folder"}


@dataclass(frozen=True)
class ClipSource:
    """Source of a CLIP's weights, as `parse_source` reads it from the settings."""

    kind: SourceKind
    """`hub` is every other model name with a scheme; `tag` is an open_clip model with one of its tags."""
    folder: Path | None = None
    """Folder of config and weights, for `bundled` and `folder`."""
    file: Path | None = None
    """File of weights, for `file`."""

    def describe(self, settings: ClipSettings) -> dict[str, Any]:
        """Return the model's name and its tag, or SHA-256 hashes of its local files in place of their paths.

        Raises:
            InputError: a folder has no weights.
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
    """Decide from a CLIP's settings where its weights come from. Nothing is loaded.

    Args:
        is_tag: returns whether open_clip knows a model (first argument) with a tag (second argument). It is called
            only for a file name without a folder, since a tag takes precedence over a file with the same name.

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
    """Return settings that find the CLIP from any working directory: those given, with absolute paths."""
    model, pretrained = settings.model, settings.pretrained
    if model.startswith(LOCAL_PREFIX):
        model = f"{LOCAL_PREFIX}{Path(model.removeprefix(LOCAL_PREFIX)).resolve()}"
    if pretrained is not None and Path(pretrained).is_file():
        # links stay: the hub's cache links readable names to files that have no suffix and no config beside them
        pretrained = os.path.abspath(pretrained)
    return {**settings.identity(), "model": model, "pretrained": pretrained}
