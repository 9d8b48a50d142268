"""Source of a CLIP model's weights: a bundled or local folder, a file, an open_clip tag, or a model hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError
from ..settings import literal_location
from .convert.transformers_files import CONFIG_FILE, transformers_files
from .files import CONFIG_NAME, find_weights, hash_files
from .names import BUNDLED_PREFIX, HUB_PREFIX, LOCAL_PREFIX, OPENAI_PREFIX, TRANSFORMERS_PREFIX
from .settings import ClipSettings

__all__ = ["HUB_PREFIX", "LOCAL_PREFIX", "ClipSource", "clip_location", "parse_source"]

_RECIPES = Path(__file__).resolve().parents[2] / "recipes"
"""Folder that contains the bundled CLIP models."""

SourceKind = Literal["bundled", "folder", "transformers", "openai", "file", "hub", "tag"]


@dataclass(frozen=True)
class ClipSource:
    """Source of a CLIP model's weights: a bundled or local folder, a weight file, an open_clip tag, or a model hub.

    `parse_source` determines it from the settings.
    """

    kind: SourceKind
    """Kind of source. It depends on the prefix of the model name, or on the weights if there is no prefix.

    - `bundled`: the name has the prefix `priorkit:`.
    - `folder`: the name has the prefix `local-dir:`, and the folder is one of open_clip.
    - `transformers`: the name has the prefix `local-dir:`, and the folder is one of transformers; or the name has the
      prefix `hf_clip:`.
    - `openai`: the name has the prefix `openai_clip:` and names a file.
    - `hub`: the name has the prefix `hf-hub:`.
    - `file`: the name has no prefix, and the weights come from a file.
    - `tag`: the name has no prefix, and the weights come from an open_clip tag.
    """
    folder: Path | None = None
    """Local folder with the config and weights; None for weights from a file, a tag or a hub."""
    file: Path | None = None
    """Weight file if `kind` is `file` or `openai`, otherwise None."""

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
            if self.kind == "transformers":
                files = transformers_files(self.folder)
            else:
                files = [find_weights(self.folder), self.folder / CONFIG_NAME]
            return {"model": model, "files": hash_files(files), **overrides}
        if self.file is not None:
            if self.kind == "openai":
                return {"model": OPENAI_PREFIX.rstrip(":"), "files": hash_files([self.file]), **overrides}
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
    model, name = settings.model, settings.pretrained
    if model.startswith(BUNDLED_PREFIX):
        return ClipSource("bundled", folder=_open_clip_folder(settings, _RECIPES / model.removeprefix(BUNDLED_PREFIX)))
    if model.startswith(LOCAL_PREFIX):
        return _local_folder(settings, Path(model.removeprefix(LOCAL_PREFIX)))
    if model.startswith(TRANSFORMERS_PREFIX):
        folder = Path(model.removeprefix(TRANSFORMERS_PREFIX))
        if (folder / CONFIG_FILE).is_file():
            return ClipSource("transformers", folder=folder)
        return _local_folder(settings, folder) if folder.is_dir() else ClipSource("transformers")
    if model.startswith(OPENAI_PREFIX):
        file = Path(model.removeprefix(OPENAI_PREFIX))
        if not file.is_file():
            raise InputError(
                f"embed.clip.model={model}: neither a file nor a model of OpenAI's package; those are RN50, RN101, "
                "RN50x4, RN50x16, RN50x64, ViT-B/32, ViT-B/16, ViT-L/14 and ViT-L/14@336px"
            )
        return ClipSource("openai", file=file)
    if name and Path(name).is_file() and (os.path.sep in name or not is_tag(model, name)):
        return ClipSource("file", file=Path(name))
    if name and os.path.sep in name:
        raise InputError(f"embed.clip.pretrained={name}: no such file")
    return ClipSource("hub" if ":" in model else "tag")


def _local_folder(settings: ClipSettings, folder: Path) -> ClipSource:
    """Return the source for a local folder of open_clip or transformers. open_clip's config is preferred."""
    if not (folder / CONFIG_NAME).is_file() and (folder / CONFIG_FILE).is_file():
        return ClipSource("transformers", folder=folder)
    return ClipSource("folder", folder=_open_clip_folder(settings, folder))


def _open_clip_folder(settings: ClipSettings, folder: Path) -> Path:
    """Return a folder after checking that it has a config of open_clip.

    Raises:
        InputError: the folder has none. The message says what the folder is and what to do, if it is of a known kind.
    """
    if (folder / CONFIG_NAME).is_file():
        return folder
    reason = f"embed.clip.model={settings.model}: {folder} holds no {CONFIG_NAME}"
    if not folder.is_dir():
        raise InputError(f"{reason}, because there is no such folder")
    if (folder / "model_index.json").is_file():
        raise InputError(
            f"{reason}. It is a pipeline of diffusers, whose text encoder is only one tower of a CLIP.\n"
            "Give the folder of a whole CLIP (config.json, model.safetensors) or its name on the hub, hf_clip:ORG/NAME"
        )
    if (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{reason}. It is an adapter (PEFT), which changes the weights of another model.\n"
            "Merge it into that model (merge_and_unload), and give the folder that save_pretrained then writes"
        )
    archives = sorted(path.name for path in folder.glob("*.pt"))
    if archives:
        raise InputError(
            f"{reason} and no {CONFIG_FILE}, only weights such as {archives[0]}.\nFor weights of OpenAI's package give "
            f"{OPENAI_PREFIX}{folder / archives[0]}; for others name the model: --model ViT-B-32 --pretrained FILE"
        )
    raise InputError(
        f"{reason} (open_clip) and no {CONFIG_FILE} (transformers). Such a file says how to build the model; copy it "
        "from where the weights came from"
    )


def clip_location(settings: ClipSettings) -> dict[str, Any]:
    """Return the settings needed to load the same CLIP model again from any working directory, as a dictionary.

    They are the settings that affect the embeddings, with local paths made absolute. Dollar signs are escaped, because
    `ClipSettings` expands environment variables.
    """
    model, pretrained = settings.model, settings.pretrained
    for prefix in (LOCAL_PREFIX, OPENAI_PREFIX, TRANSFORMERS_PREFIX):
        path = Path(model.removeprefix(prefix))
        if model.startswith(prefix) and (prefix == LOCAL_PREFIX or path.exists()):
            # a file keeps its name, because the target of a link in the hub's cache has no suffix
            model = f"{prefix}{os.path.abspath(path) if path.is_file() else path.resolve()}"
            break
    if pretrained is not None and Path(pretrained).is_file():
        # do not resolve links: in the hub's cache, their targets have no suffix, and no config beside them
        pretrained = os.path.abspath(pretrained)
    escaped = None if pretrained is None else literal_location(pretrained)
    return {**settings.identity(), "model": literal_location(model), "pretrained": escaped}
