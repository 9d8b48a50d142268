"""Descriptions of files that are not weights of a CLIP model, for error messages."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch

from ..errors import InputError
from .convert.torchscript import is_torchscript

_BEGINNINGS = (
    (b"\x89HDF\r\n\x1a\n", "weights of TensorFlow (HDF5)", "Load them there, and save the model for PyTorch"),
    (b"GGUF", "a model of llama.cpp (GGUF)", "Use the weights that it was made from, in safetensors"),
    (b"\x93NUMPY", "an array of NumPy", "Embeddings are read with `priorkit adopt`"),
    (b"\x1f\x8b", "compressed with gzip", "Unpack it first"),
    (b"<!DOCTYPE", "a web page", "Download the file itself: on the hub, use its link `resolve` instead of `blob`"),
    (b"<html", "a web page", "Download the file itself: on the hub, use its link `resolve` instead of `blob`"),
)
"""First bytes of files of other kinds, what they are, and what the user can do."""
_TAR_MARK = 257
"""Position of the bytes `ustar` in a tar file."""
_TRANSFORMERS = (
    "weights of transformers",
    "Put them beside their config.json and give --model local-dir:FOLDER, or name them as hf_clip:ORG/NAME",
)
_LORA = "lora"
_TENSORS = (
    ("noise_scheduler.", "a diffusion prior", "It goes with --clip to `priorkit sample`, or to train.init_from"),
    ("model.diffusion_model.", "a checkpoint of Stable Diffusion", "Give the CLIP that its text encoder comes from"),
    ("first_stage_model.", "an image decoder", "Give the weights of a CLIP"),
    (_LORA, "a LoRA adapter, which changes the weights of another model", "Merge it into that model, and save it"),
    ("text_model.", *_TRANSFORMERS),
    ("vision_model.", *_TRANSFORMERS),
    ("clip.text_model.", *_TRANSFORMERS),
)
"""Beginnings of the names of tensors, what weights with such names are, and what the user can do."""

_DAMAGE = ("PytorchStreamReader failed", "Invalid magic number")
"""Parts of the messages of torch's RuntimeError for files that are damaged or no checkpoints."""


def require_weights(path: Path) -> None:
    """Check that a file is not of a known kind other than weights of a CLIP.

    Raises:
        InputError: it is, or it is damaged. The message says what the file is and what to do.
    """
    if explained := _explain_file(path):
        raise InputError(explained)


def _explain_file(path: Path) -> str:
    """Return a description of a file that could not be loaded as weights of a CLIP, and a line that says what to do.

    The result is empty if the file is of no known kind.
    """
    with path.open("rb") as file:
        start = file.read(_TAR_MARK + 5)
    for beginning, kind, fix in _BEGINNINGS:
        if start.lower().startswith(beginning.lower()):
            return f"{path} is {kind}.\n{fix}"
    if start[_TAR_MARK:] == b"ustar":
        return f"{path} is a tar file.\nUnpack it, and give the file of weights in it"
    if path.suffix == ".onnx":
        return f"{path} is a model of ONNX, without PyTorch's names.\nUse the weights that it was exported from"
    if is_torchscript(path):  # `torch.load` does not read these
        return ""
    try:
        names = _tensor_names(path)
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            return (
                f"{path} contains Python objects other than tensors, such as a whole model, which could run code.\n"
                "Where the model was made, save its tensors alone: torch.save(model.state_dict(), FILE)"
            )
        if path.suffix == ".safetensors" or not _is_of_damage(error):
            return ""
        return (
            f"{path} is damaged, or no file of weights: torch cannot read it as one that torch.save wrote.\n"
            "Copy the weights again, or give another file (.safetensors, .pt, .pth, .bin or .ckpt)"
        )
    return _explain_names(names, path)


def _is_of_damage(error: Exception) -> bool:
    """Return True if an error of `torch.load` says that the file is damaged or no checkpoint.

    Other errors may come from files that only cannot be read without their values. They are left to the loader.
    """
    if isinstance(error, RuntimeError):
        return any(mark in str(error) for mark in _DAMAGE)
    return not isinstance(error, ImportError | MemoryError | OSError)


def _tensor_names(path: Path) -> list[str]:
    """Return the names of the tensors in a file of safetensors or `torch.save`, without reading their values."""
    if path.suffix == ".safetensors":
        import safetensors  # installed, because open_clip needs it

        with safetensors.safe_open(path, "pt") as file:
            return list(file.keys())
    if zipfile.is_zipfile(path) and not _is_torch(path):
        return []
    content = torch.load(path, map_location="meta", weights_only=True)
    while isinstance(content, dict) and isinstance(inner := content.get("state_dict", content.get("model")), dict):
        content = inner
    return [name.removeprefix("module.") for name in content if isinstance(name, str)]


def _is_torch(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("data.pkl") for name in archive.namelist())


def _explain_names(names: Iterable[str], path: Path) -> str:
    for name in names:
        for beginning, kind, fix in _TENSORS:
            if name.startswith(beginning) or (beginning == _LORA and f".{_LORA}_" in name):
                return f"{path} is {kind}.\n{fix}"
    return ""
