"""Files in a folder of a CLIP or SigLIP model of transformers."""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError
from ...json_text import parse_json
from ..files import find_weights

CONFIG_FILE = "config.json"
"""Name of the file that contains a model's config."""
WHOLE_PROCESSOR_FILE = "processor_config.json"
PROCESSOR_FILES = ("preprocessor_config.json", WHOLE_PROCESSOR_FILE)
"""Names of the files that may contain the image preprocessing. transformers 5 writes only the second one."""
VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model")
_TOKENIZER_FILES = (*VOCABULARY_FILES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Names of the files that a tokenizer may consist of. Those in `VOCABULARY_FILES` contain the vocabulary."""
_PREFERRED_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names of weight files, most preferred first."""
_INDEX = ".index.json"
"""Suffix of the file that lists the parts of large weights."""


def transformers_files(folder: Path) -> list[Path]:
    """Return the files of a folder that determine the embeddings.

    Raises:
        InputError: the folder has no usable weights.
    """
    processor = [folder / name for name in PROCESSOR_FILES if (folder / name).is_file()]
    return [*weight_files(folder), folder / CONFIG_FILE, *processor, *tokenizer_files(folder)]


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files of a folder's tokenizer. The list is empty if the folder has no vocabulary."""
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        return []
    return [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]


def weight_files(folder: Path) -> list[Path]:
    """Return the files that contain the weights of a folder. Large weights are split into several files.

    Raises:
        InputError: the folder has no weights, or its list of weight files is damaged.
    """
    for name in _PREFERRED_WEIGHTS:
        if (folder / name).is_file():
            break
        index = folder / f"{name}{_INDEX}"
        if index.is_file():
            return _parts(index)
    return [find_weights(folder, CONFIG_FILE, _PREFERRED_WEIGHTS)]


def _parts(index: Path) -> list[Path]:
    """Return the weight files that an index lists."""
    try:
        names = sorted(set(parse_json(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index}: not a list of weight files ({type(error).__name__}: {error})") from None
    for name in names:
        if Path(name).name != name:
            raise InputError(f"{index}: names the file {name!r}, which is not a plain name of a file beside it")
        if not (index.parent / name).is_file():
            raise InputError(f"{index}: names {name}, which is not there; copy all files of the model again")
    return [index.parent / name for name in names]
