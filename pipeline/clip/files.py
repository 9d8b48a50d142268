"""Files of a CLIP on this machine: where they are, and which one of a folder holds the weights."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..contract.hashing import hash_file, is_lfs_pointer
from ..contract.listing import is_data
from ..errors import InputError
from .settings import ClipSettings

CONFIG_NAME = "open_clip_config.json"
"""open_clip's name for the JSON that says a model's architecture and preprocessing."""
BUNDLED_PREFIX = "priorkit:"
LOCAL_PREFIX = "local-dir:"
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
_PREFERRED = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
)  # fmt: skip
"""Names that open_clip takes first, in its order."""
_CHOICES = {"interpolation": ("bicubic", "bilinear", "random"), "resize_mode": ("shortest", "longest", "squash")}
"""Values of preprocessing that open_clip knows."""
_RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def clip_location(settings: ClipSettings) -> dict[str, Any]:
    """Settings that find a CLIP from any folder: those given, with absolute paths."""
    model, pretrained = settings.model, settings.pretrained
    if model.startswith(LOCAL_PREFIX):
        model = f"{LOCAL_PREFIX}{Path(model.removeprefix(LOCAL_PREFIX)).resolve()}"
    if pretrained is not None and Path(pretrained).is_file():
        # links are kept: the hub's cache links readable names to files without a suffix or a config beside them
        pretrained = os.path.abspath(pretrained)
    return {**settings.identity(), "model": model, "pretrained": pretrained}


def local_folder(settings: ClipSettings) -> Path | None:
    """Folder of a CLIP that is named by one; None for other names.

    Raises:
        InputError: the folder holds no config.
    """
    if settings.model.startswith(BUNDLED_PREFIX):
        folder = _RECIPES / settings.model.removeprefix(BUNDLED_PREFIX)
    elif settings.model.startswith(LOCAL_PREFIX):
        folder = Path(settings.model.removeprefix(LOCAL_PREFIX))
    else:
        return None
    if not (folder / CONFIG_NAME).is_file():
        raise InputError(f"embed.clip.model={settings.model}: {folder} holds no {CONFIG_NAME}")
    return folder


def find_weights(folder: Path) -> Path:
    """The file of weights in a CLIP's folder: by open_clip's names, or the only one.

    Raises:
        InputError: there is none, or several and no telling which.
    """
    found = sorted(
        path for path in folder.iterdir() if path.suffix in _WEIGHT_SUFFIXES and is_data(path.name) and path.is_file()
    )
    named = [path for name in _PREFERRED for path in found if path.name == name]
    if not found:
        endings = ", ".join(f"*{suffix}" for suffix in _WEIGHT_SUFFIXES)
        raise InputError(
            f"local-dir:{folder} holds no weights ({endings}) beside {CONFIG_NAME}; put the model's weights there"
        )
    if not named and len(found) > 1:
        names = ", ".join(path.name for path in found[:3]) + (" and more" if len(found) > 3 else "")
        raise InputError(
            f"local-dir:{folder} holds several files of weights ({names}), and none has a name that open_clip takes "
            f"first; keep one, or rename it to open_clip_pytorch_model.bin (.safetensors: {_PREFERRED[0]})"
        )
    weights = (named or found)[0]
    require_content(weights)
    return weights


def require_content(weights: Path) -> None:
    """InputError if a file of weights is a pointer of Git LFS or empty."""
    with weights.open("rb") as file:
        if is_lfs_pointer(file):
            raise InputError(f"{weights}: a pointer of Git LFS, not the file; run `git lfs pull` in its repository")
    if weights.stat().st_size == 0:
        raise InputError(f"{weights}: an empty file; copy the weights again")


def read_clip_config(path: Path) -> dict[str, Any] | None:
    """The JSON of a CLIP's config: `model_cfg` and perhaps `preprocess_cfg`; None where there is no file.

    Raises:
        InputError: the file is no config.
    """
    if not path.is_file():
        return None
    try:
        config: dict[str, Any] = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    model = config.get("model_cfg") if isinstance(config, dict) else None
    if not isinstance(model, dict) or not isinstance(config.get("preprocess_cfg") or {}, dict):
        raise InputError(f"{path}: not a config of open_clip, which is an object with `model_cfg` and `preprocess_cfg`")
    for part in ("vision_cfg", "text_cfg"):
        if not isinstance(model.get(part), dict):
            raise InputError(f"{path}: model_cfg.{part} must be an object (got {json.dumps(model.get(part))[:100]})")
    _require_preprocess(config.get("preprocess_cfg") or {}, path)
    return config


def _require_preprocess(preprocess: Mapping[str, Any], path: Path) -> None:
    """InputError if a config's preprocessing has values that open_clip would take and fail on with the first image."""
    for name, value in preprocess.items():
        wanted = ""
        if name in ("mean", "std") and value is not None:
            values = value if isinstance(value, list) else [value] * 3
            if len(values) != 3 or not all(type(number) in (int, float) for number in values):
                wanted = "three numbers"
        elif name in _CHOICES and value not in (*_CHOICES[name], None):
            wanted = " or ".join(_CHOICES[name])
        if wanted:
            raise InputError(f"{path}: preprocess_cfg.{name} must be {wanted} (got {json.dumps(value)[:100]})")


def hash_files(files: list[Path]) -> dict[str, str]:
    """SHA-256 of each file by name."""
    hashes = {}
    for path in sorted(files):
        with path.open("rb") as file:
            hashes[path.name] = hash_file(file)
    return hashes
