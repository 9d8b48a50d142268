"""OpenAI's weights: TorchScript archives, as its package downloads them, and state dicts with the same names.

Only the tensors are read. An archive whose code torch would run while it loads the file is refused.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import InputError

_CONSTANTS = ("input_resolution", "context_length", "vocab_size")
"""Names of the numbers that OpenAI's archives contain next to the weights."""
_NOT_WEIGHTS = (*_CONSTANTS, "attn_mask", "text.attn_mask")
_OPENAI_HEAD_WIDTH = 64
"""Width of each attention head in all models of OpenAI. The weights do not contain the number of heads."""


def is_torchscript(path: Path) -> bool:
    """Return True if a file is a TorchScript archive, as written by `torch.jit.save`."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, torch.Tensor]:
    """Read the weights in a TorchScript archive.

    Raises:
        InputError: torch would run code of the archive to load it.
    """
    _refuse_code_at_load(path)
    load: Any = torch.jit.load  # has no type annotations
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls TorchScript deprecated, but still reads it
        state = load(str(path), map_location="cpu").state_dict()
    return {name: value for name, value in state.items() if name not in _NOT_WEIGHTS}


def _refuse_code_at_load(path: Path) -> None:
    """Check that torch runs no code of an archive while it loads the file.

    torch runs the methods `__setstate__` of an archive's classes, which can write files. The archive is read with
    torch's own reader, because Python's `zipfile` may find other files in an archive that was made to deceive.

    Raises:
        InputError: a class of the archive has such a method, or the archive has the form of PyTorch 1.0 to 1.2, whose
            code may be in any of its files.
    """
    reader = torch._C.PyTorchFileReader(str(path))
    names = reader.get_all_records()
    # torch ignores the case of names
    code = [name for name in names if name.lower().startswith("code/") and name.lower().endswith(".py")]
    if "constants.pkl" not in names or any(b"__setstate__" in reader.get_record(name) for name in code):
        raise InputError(
            f"{path}: a TorchScript archive with code that torch would run to load it (__setstate__). priorkit runs no "
            "such code.\nIf you trust the file, save its tensors alone: "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
        )


def stated_activation(path: Path) -> bool | None:
    """Return True if the code in a TorchScript archive uses QuickGELU, and False if it uses GELU.

    Return None if the code uses both or neither. QuickGELU is the only use of a sigmoid in a CLIP model.
    """
    code = _code(path)
    has_quick_gelu, has_gelu = b"torch.sigmoid(" in code, b"torch.gelu(" in code
    return None if has_quick_gelu == has_gelu else has_quick_gelu


def stated_by_archive(path: Path, openai: Mapping[str, Any]) -> dict[str, Any]:
    """Return the preprocessing and activation values that a TorchScript archive determines.

    The code of an archive contains the activation. If it has the form of OpenAI's archives, it also determines the
    preprocessing. For other files, the result is empty.

    Args:
        path: file of weights.
        openai: OpenAI's preprocessing and activation values.
    """
    if not is_torchscript(path):
        return {}
    code, quick_gelu = _code(path), stated_activation(path)
    stated = {} if quick_gelu is None else {"quick_gelu": quick_gelu}
    return {**openai, **stated} if all(name.encode() in code for name in _CONSTANTS) else stated


def _code(path: Path) -> bytes:
    """Return the code in a TorchScript archive as text."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if "/code/" in name and name.endswith(".py")]
        return b"\n".join(archive.read(name) for name in names)


def openai_config(state: Mapping[str, torch.Tensor], path: Path) -> dict[str, Any]:
    """Return the open_clip config of a model of OpenAI's package, derived from the shapes of its weights.

    Args:
        state: weights of the model.
        path: file of the weights, for error messages.

    Raises:
        InputError: the weights are not those of a model of OpenAI's package.
    """
    try:
        vision = _vision_transformer(state) if "visual.proj" in state else _resnet(state)
        width = len(state["ln_final.weight"])
        return {
            "embed_dim": state["text_projection"].shape[1],
            "quick_gelu": True,
            "vision_cfg": vision,
            "text_cfg": {
                "context_length": len(state["positional_embedding"]),
                "vocab_size": len(state["token_embedding.weight"]),
                "width": width,
                "heads": _heads(width, path),
                "layers": _count(state, "transformer.resblocks.", 2),
            },
        }
    except KeyError as error:
        raise InputError(
            f"{path}: not weights of OpenAI's CLIP, which have a tensor {error.args[0]}.\nName the architecture of "
            "these weights (--model ViT-B-32 --pretrained FILE), or give a folder with their config (local-dir:)"
        ) from None


def _vision_transformer(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    width, _, _, patch = state["visual.conv1.weight"].shape
    grid = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    return {
        "image_size": patch * grid,
        "layers": _count(state, "visual.transformer.resblocks.", 3),
        "width": width,
        "patch_size": patch,
    }


def _resnet(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    grid = round((len(state["visual.attnpool.positional_embedding"]) - 1) ** 0.5)
    return {
        "image_size": grid * 32,
        "layers": [_count(state, f"visual.layer{stage}.", 2) for stage in (1, 2, 3, 4)],
        "width": len(state["visual.layer1.0.conv1.weight"]),
        "patch_size": None,
    }


def _heads(width: int, path: Path) -> int:
    if width % _OPENAI_HEAD_WIDTH:
        raise InputError(
            f"{path}: its text tower is {width} wide, but OpenAI's have heads of {_OPENAI_HEAD_WIDTH}. Put the file in "
            "a folder with an open_clip_config.json that states the heads, and give local-dir:FOLDER"
        )
    return width // _OPENAI_HEAD_WIDTH


def _count(state: Mapping[str, torch.Tensor], prefix: str, place: int) -> int:
    """Return the number of different layers among the names with a prefix; `place` is the layer's place in a name."""
    return len({name.split(".")[place] for name in state if name.startswith(prefix)})
