"""Image preprocessing and tokenizer of a CLIP or SigLIP model of transformers."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import Compose, Normalize, ToTensor  # type: ignore[import-untyped]

from ...errors import InputError
from ...explain import one_line
from ...json_text import parse_json
from ..errors import ASKS_TO_RUN_CODE
from .transformers_config import Family
from .transformers_files import PROCESSOR_FILES, VOCABULARY_FILES, WHOLE_PROCESSOR_FILE, tokenizer_files

_OPENAI_VOCABULARY = 49408
"""Size of OpenAI's vocabulary. open_clip's tokenizer has it too."""
_RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Names of Pillow's interpolation methods, in the order of the numbers that transformers stores."""
_HALF = [0.5, 0.5, 0.5]
_DEFAULTS: dict[Family, dict[str, Any]] = {
    "clip": {
        "size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": 224,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
    "siglip": {"size": {"height": 224, "width": 224}, "do_center_crop": False, "image_mean": _HALF, "image_std": _HALF},
}  # fmt: skip
"""Values that the image processors of transformers use for keys that a file lacks, keyed by family."""
SIGLIP_PREPROCESS = {"mean": _HALF, "std": _HALF, "interpolation": "bicubic", "resize_mode": "squash"}
"""Preprocessing of all published SigLIP models, used for a folder that does not state its preprocessing."""


@dataclass(frozen=True)
class Resize:
    """Resize an image to a square as the image processors of transformers do.

    open_clip's transform rounds the position of the crop differently, and converts the image to RGB only afterwards.
    """

    size: int
    """Side of the result in pixels."""
    resize_to: int
    """Length in pixels that the shorter side is resized to, or both sides if `squash` is True. The rest is cropped."""
    interpolation: str
    """Name of the interpolation method, one of Pillow's in lower case."""
    squash: bool
    """True to change the aspect ratio, False to keep it."""

    def __call__(self, image: Image.Image) -> Image.Image:
        image = image.convert("RGB")
        shorter = min(image.size)
        width, height = (self.resize_to if self.squash else int(self.resize_to * side / shorter) for side in image.size)
        resized = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
        left, top = (width - self.size) // 2, (height - self.size) // 2
        return resized.crop((left, top, left + self.size, top + self.size))


def transform(preprocess: dict[str, Any], size: int, library: Any) -> Any:
    """Return the transform from an image to normalised pixels.

    Args:
        preprocess: values `mean`, `std`, `interpolation`, `resize_mode` and, if it differs from the size, `resize_to`.
        size: side of the result in pixels.
        library: the open_clip module.
    """
    if preprocess["resize_mode"] == "longest":
        values = {name: preprocess[name] for name in ("mean", "std", "interpolation", "resize_mode")}
        config = library.transform.PreprocessCfg(size=size, **values)
        return library.transform.image_transform_v2(config, is_train=False)
    resize_to, squash = preprocess.get("resize_to", size), preprocess["resize_mode"] == "squash"
    resize = Resize(size, resize_to, preprocess["interpolation"], squash)
    return Compose([resize, ToTensor(), Normalize(preprocess["mean"], preprocess["std"])])


def read_preprocess(folder: Path, family: Family, size: int) -> dict[str, Any] | None:
    """Read the image preprocessing of a folder. Return None if the folder does not state it.

    Args:
        folder: folder of the model.
        family: family of the model.
        size: side of the model's images in pixels.

    Returns:
        Values `mean`, `std`, `interpolation`, `resize_mode` and, if it differs from `size`, `resize_to`.

    Raises:
        InputError: the file is damaged, or the preprocessing is one that priorkit cannot do.
    """
    found = _stored_processor(folder)
    if found is None:
        return None
    path, stored = found
    values = {**_DEFAULTS[family], **{name: value for name, value in stored.items() if value is not None}}
    steps = [name for name in ("do_resize", "do_rescale") if not values.get(name, True)]
    if steps or abs(values.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3:
        raise InputError(
            f"{path}: {steps[0] + '=false' if steps else 'rescale_factor'} is preprocessing that priorkit cannot do; "
            f"correct the file, or state all of embed.clip.preprocess and move {path.name} away"
        )
    resize_mode, resize_to = _resizing(values, size, family, path)
    number = values.get("resample", _RESAMPLING.index("bicubic"))
    if number not in range(len(_RESAMPLING)):
        raise InputError(f"{path}: resample={number!r} is none of Pillow's methods, 0 to {len(_RESAMPLING) - 1}")
    normalises = values.get("do_normalize", True)
    preprocess = {
        "mean": _three(values["image_mean"] if normalises else 0.0, "image_mean", path),
        "std": _three(values["image_std"] if normalises else 1.0, "image_std", path),
        "interpolation": _RESAMPLING[number],
        "resize_mode": resize_mode,
    }
    return preprocess if resize_to == size else {**preprocess, "resize_to": resize_to}


def _stored_processor(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the path and the content of the file that states a folder's image preprocessing; None if there is none."""
    for name in PROCESSOR_FILES:
        path = folder / name
        if not path.is_file():
            continue
        try:
            stored = parse_json(path.read_bytes())
        except ValueError as error:
            raise InputError(f"{path}: not JSON ({error})") from None
        if isinstance(stored, dict) and name == WHOLE_PROCESSOR_FILE:
            stored = stored.get("image_processor", {})
        if not isinstance(stored, dict):
            raise InputError(f"{path}: not the config of an image processor of transformers")
        if stored:
            return path, stored
    return None


def _resizing(values: dict[str, Any], size: int, family: Family, path: Path) -> tuple[str, int]:
    """Return the resize mode and the length that images are resized to before they are cropped."""
    stored, crop, crops = values["size"], values.get("crop_size") or {}, bool(values["do_center_crop"])
    if isinstance(stored, int):  # in old files
        stored = {"shortest_edge": stored} if family == "clip" else {"height": stored, "width": stored}
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    stored, crop = (value if isinstance(value, dict) else {} for value in (stored, crop))
    mode, resize_to = "squash", stored.get("height") if stored.get("height") == stored.get("width") else None
    if crops and "shortest_edge" in stored:
        mode, resize_to = "shortest", stored["shortest_edge"]
    result = (crop.get("height"), crop.get("width")) if crops else (resize_to, resize_to)
    if not isinstance(resize_to, int) or result != (size, size) or resize_to < size:
        raise InputError(
            f"{path}: size={values['size']}, do_center_crop={str(crops).lower()} and "
            f"crop_size={values.get('crop_size')} do not give square images of the model's size, {size}; correct them"
        )
    return mode, resize_to


def _three(value: Any, name: str, path: Path) -> list[float]:
    values = list(value) if isinstance(value, list | tuple) else [value] * 3
    if len(values) != 3 or not all(isinstance(number, int | float) for number in values):
        raise InputError(f"{path}: {name} must be three numbers (got {str(value)[:100]})")
    return [float(number) for number in values]


class Tokenizer:
    """Tokenizer of a folder, called like those of open_clip.

    Captions are passed to transformers as they are, without the cleaning that open_clip's own tokenizers do.

    Args:
        folder: folder with the files of the tokenizer.
        context_length: number of tokens per caption.
        vocabulary: number of tokens that the model knows.

    Raises:
        InputError: the tokenizer cannot be loaded, cannot pad captions, or has more tokens than the model.
    """

    def __init__(self, folder: Path, context_length: int, vocabulary: int) -> None:
        self._context_length = context_length
        self._tokenizer = _load_tokenizer(folder)
        if len(self._tokenizer) > vocabulary:
            raise InputError(
                f"{folder}: its tokenizer has {len(self._tokenizer):,} tokens, the model has {vocabulary:,}; copy the "
                "tokenizer that belongs to the model"
            )
        if self._tokenizer.pad_token is None:
            raise InputError(
                f"{folder}: its tokenizer has no token to pad captions with; state pad_token in tokenizer_config.json"
            )

    def __call__(self, captions: list[str]) -> torch.Tensor:
        encoded = self._tokenizer(
            captions, max_length=self._context_length, padding="max_length", truncation=True, return_tensors="pt"
        )
        return torch.as_tensor(encoded["input_ids"])


def _load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a folder with transformers.

    Raises:
        InputError: a package is missing, the files of the tokenizer are damaged, or the tokenizer needs Python code in
            the folder.
    """
    from transformers import AutoTokenizer

    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns about parts of the config that priorkit does not use
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except ImportError as error:
        raise InputError(
            f"{folder}: its tokenizer needs a package that is not installed ({one_line(error, 100)}).\n"
            'Install all that models of transformers need: pip install "priorkit[transformers]"'
        ) from None
    except Exception as error:  # transformers lets any exception from parsers propagate
        if ASKS_TO_RUN_CODE in str(error):
            raise InputError(
                f"{folder}: its tokenizer is a class of its own (auto_map in tokenizer_config.json); priorkit runs no "
                "code of a model's folder.\nUse a folder whose tokenizer is a class of transformers, or embed with "
                "transformers and read the vectors with `priorkit adopt`"
            ) from None
        raise InputError(
            f"{folder}: its tokenizer cannot be loaded ({type(error).__name__}: {one_line(error, 200)}).\n"
            "Copy the files of the tokenizer again from where the model was published"
        ) from None
    finally:
        logger.setLevel(level)


def require_tokenizer(folder: Path, family: Family, vocabulary: int) -> None:
    """Check that captions can be tokenized for a model.

    A CLIP with OpenAI's vocabulary needs no files, because open_clip has that vocabulary.

    Raises:
        InputError: the folder has no tokenizer, or the package transformers is needed and not installed.
    """
    if not tokenizer_files(folder):
        if family == "clip" and vocabulary == _OPENAI_VOCABULARY:
            return
        raise InputError(
            f"{folder} holds no tokenizer ({', '.join(VOCABULARY_FILES)}), and its vocabulary of {vocabulary:,} tokens "
            "is not OpenAI's.\nCopy the model's tokenizer there; in transformers, processor.save_pretrained writes it"
        )
    if importlib.util.find_spec("transformers") is None:
        raise InputError(
            f"{folder}: its tokenizer needs the package transformers, which is not installed: "
            'pip install "priorkit[transformers]"'
        )
