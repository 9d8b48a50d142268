"""Functions that find, read and hash the local weight and config files of a CLIP model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..contract.hashing import hash_file, is_lfs_pointer
from ..contract.listing import is_data
from ..errors import InputError
from ..json_text import parse_json

CONFIG_NAME = "open_clip_config.json"
"""Name of open_clip's JSON config file, which contains a model's architecture and preprocessing."""
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
_OTHER_FRAMEWORKS = {".h5": "TensorFlow", ".msgpack": "Flax", ".onnx": "ONNX", ".gguf": "llama.cpp"}
"""Names of frameworks, keyed by the suffix of the weight files that only they can read."""
_PREFERRED = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
)  # fmt: skip
"""File names that open_clip prefers for weights, most preferred first."""
_CHOICES = {"interpolation": ("bicubic", "bilinear", "random"), "resize_mode": ("shortest", "longest", "squash")}
"""Values that open_clip accepts for each preprocessing field, keyed by field name."""


def find_weights(folder: Path, config: str = CONFIG_NAME, names: tuple[str, ...] = _PREFERRED) -> Path:
    """Return the path of the weight file in a CLIP model's folder.

    If the folder contains files with names from `names`, return the one that is listed first there. Otherwise, the
    folder must contain exactly one weight file, and that file is returned.

    Args:
        folder: folder of the model.
        config: name of the config file that the folder has, for error messages.
        names: preferred names of weight files, most preferred first.

    Raises:
        InputError: the folder has no weight file, or several weight files without a preferred name. The error is also
            raised if the chosen file is empty or a Git LFS pointer.
    """
    candidates = sorted(
        path for path in folder.iterdir() if path.suffix in _WEIGHT_SUFFIXES and is_data(path.name) and path.is_file()
    )
    preferred = [path for name in names for path in candidates if path.name == name]
    if not candidates:
        endings = ", ".join(f"*{suffix}" for suffix in _WEIGHT_SUFFIXES)
        others = [path for path in sorted(folder.iterdir()) if path.suffix in _OTHER_FRAMEWORKS]
        fix = "put the model's weights there"
        if others:
            framework = _OTHER_FRAMEWORKS[others[0].suffix]
            fix = f"{others[0].name} is of {framework}: load it there, and save it for PyTorch as safetensors"
        raise InputError(f"local-dir:{folder} holds no weights ({endings}) beside {config}; {fix}")
    if not preferred and len(candidates) > 1:
        listed = ", ".join(path.name for path in candidates[:3]) + (" and more" if len(candidates) > 3 else "")
        bare = next(name for name in names if name.endswith(".bin"))
        raise InputError(
            f"local-dir:{folder} holds several files of weights ({listed}), and none has a name that is taken "
            f"first; keep one, or rename it to {bare} (.safetensors: {names[0]})"
        )
    weights = (preferred or candidates)[0]
    require_content(weights)
    return weights


def require_content(weights: Path) -> None:
    """Check that a weight file is neither empty nor a Git LFS pointer.

    Raises:
        InputError: the file is empty or a Git LFS pointer.
    """
    with weights.open("rb") as file:
        if is_lfs_pointer(file):
            raise InputError(f"{weights}: a pointer of Git LFS, not the file; run `git lfs pull` in its repository")
    if weights.stat().st_size == 0:
        raise InputError(f"{weights}: an empty file; copy the weights again")


def read_clip_config(path: Path) -> dict[str, Any] | None:
    """Read the config file of a CLIP model. Return None if the file does not exist.

    The result has the key `model_cfg`, and `preprocess_cfg` if the file specifies preprocessing.

    Raises:
        InputError: the file is not an open_clip config.
    """
    if not path.is_file():
        return None
    try:
        config: dict[str, Any] = parse_json(path.read_bytes())
    except ValueError as error:
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
    """Check the preprocessing values in a config file.

    open_clip does not check them when it loads a model, and would fail only on the first image.

    Raises:
        InputError: a value has the wrong type, or open_clip does not accept it.
    """
    for name, value in preprocess.items():
        expected = ""
        if name in ("mean", "std") and value is not None:
            values = value if isinstance(value, list) else [value] * 3
            if len(values) != 3 or not all(type(number) in (int, float) for number in values):
                expected = "three numbers"
        elif name in _CHOICES and value not in (*_CHOICES[name], None):
            expected = " or ".join(_CHOICES[name])
        if expected:
            raise InputError(f"{path}: preprocess_cfg.{name} must be {expected} (got {json.dumps(value)[:100]})")


def hash_files(files: list[Path]) -> dict[str, str]:
    """Return the SHA-256 of each file, keyed by file name."""
    hashes = {}
    for path in sorted(files):
        with path.open("rb") as file:
            hashes[path.name] = hash_file(file)
    return hashes
