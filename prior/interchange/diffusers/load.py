"""Loading of diffusers' priors: folders of a `PriorTransformer`, and folders of a pipeline that includes one."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ....pipeline.contract.storage import Store
from ....pipeline.errors import InputError
from ...model.config import PriorConfig, build_network_with, build_normaliser, describe_network
from ...model.prior import Prior
from ...model.tensor_file import TensorFile
from .settings import CLASS_NAME, to_prior_config, transformer_network

CONFIG_NAME = "config.json"
INDEX_NAME = "model_index.json"
"""Name of the file that lists the components of a pipeline."""
SCHEDULER_CONFIG_NAME = "scheduler_config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
_VARIANTS = ("", ".fp16")
"""Variants of the weights' names, most exact first."""
_PRIOR_FOLDERS = ("prior", "prior_prior")
"""Names of the prior in a pipeline. Kandinsky's combined pipelines use the second one."""
_SCHEDULER_FOLDERS = ("prior_scheduler", "scheduler")
"""Names of the prior's scheduler in a pipeline. Where the first one exists, the second one is the decoder's."""
_STATISTICS = {"clip_mean": "mean", "clip_std": "to_embed"}
"""Names of the statistics of image embeddings in diffusers and in `EmbeddingNormaliser`."""


class TransformerFolder(NamedTuple):
    """Folder of a `PriorTransformer`, and the scheduler of its pipeline."""

    store: Store
    """Folder with `config.json` and the weights."""
    config: dict[str, Any]
    """Parsed `config.json`."""
    scheduler: dict[str, Any] | None
    """Parsed `scheduler_config.json`; None if there is none."""
    scheduler_source: str
    """Name of the `scheduler_config.json`, for messages."""


def find_transformer(path: str) -> TransformerFolder | None:
    """Return the `PriorTransformer` in a folder of diffusers; None if the folder is not one of diffusers.

    Args:
        path: local or remote folder of a model or of a pipeline.

    Raises:
        InputError: the folder holds another model of diffusers, a pipeline without a prior, or a damaged config.
    """
    store = Store(path)
    config = _read_json(store, CONFIG_NAME)
    if config is not None:
        return _model_folder(store, config, None, "") if "_class_name" in config else None
    index = _read_json(store, INDEX_NAME)
    if index is None:
        return None
    for name in _PRIOR_FOLDERS:
        inner = Store(f"{store.url}/{name}")
        if (config := _read_json(inner, CONFIG_NAME)) is not None:
            return _model_folder(inner, config, *_find_scheduler(store))
    raise InputError(
        f"{path}: the pipeline {str(index.get('_class_name'))[:60]} has no folder prior/ with a config.json; give a "
        "pipeline that includes a prior, such as one of kandinsky-2-2-prior or karlo"
    )


def transformer_files(folder: TransformerFolder) -> list[str]:
    """Return the names of the files that determine the prior's network, relative to `folder.store`.

    Raises:
        InputError: there are no weights, or the list of their parts is damaged.
    """
    return [CONFIG_NAME, *_weight_names(folder.store)]


def is_transformer(store: Store) -> bool:
    """Return True if a folder contains a model of diffusers, of any class."""
    return "_class_name" in (_read_json(store, CONFIG_NAME) or {})


def _find_scheduler(store: Store) -> tuple[dict[str, Any] | None, str]:
    """Return the scheduler config of a pipeline's prior, or None, and the file's name."""
    for name in _SCHEDULER_FOLDERS:
        inner = Store(f"{store.url}/{name}")
        if (scheduler := _read_json(inner, SCHEDULER_CONFIG_NAME)) is not None:
            return scheduler, f"{inner.url}/{SCHEDULER_CONFIG_NAME}"
    return None, ""


def _model_folder(store: Store, config: dict[str, Any], scheduler: dict[str, Any] | None, source: str) -> (
    TransformerFolder
):  # fmt: skip
    if config.get("_class_name") != CLASS_NAME:
        raise InputError(
            f"{store.url}: holds a {str(config.get('_class_name'))[:100]} of diffusers; priorkit reads its "
            f"{CLASS_NAME}, the prior of Karlo, Kandinsky and ECLIPSE"
        )
    return TransformerFolder(store, config, scheduler, source)


def _read_json(store: Store, name: str) -> dict[str, Any] | None:
    """Return the dictionary in a JSON file; None if the file does not exist.

    Raises:
        InputError: the file is not JSON, or contains something else.
    """
    if store.size(name) is None:
        return None
    content = store.read_json(name)
    if not isinstance(content, dict):
        raise InputError(f"{store.path(name)}: holds a {type(content).__name__}, not a JSON object; restore it")
    return content


def load_transformer(folder: TransformerFolder, clip_settings: dict[str, Any]) -> Prior:
    """Load a prior of diffusers onto the CPU, with float32 weights. The weights are read into memory only once.

    Args:
        folder: result of `find_transformer`.
        clip_settings: settings for loading the prior's CLIP model; empty if it is unknown.

    Raises:
        InputError: a file is missing or damaged, or the weights do not fit the config.
    """
    source = f"{folder.store.url}/{CONFIG_NAME}"
    config = to_prior_config(folder.config, folder.scheduler, source, folder.scheduler_source)
    config = config.model_copy(update={"clip_settings": clip_settings})
    tensors = _read_weights(folder.store, config)
    normaliser = build_normaliser(config)
    if transformer_network(config).time_token:
        statistics = {ours: tensors.pop(theirs)[0] for theirs, ours in _STATISTICS.items()}
        if not statistics["to_embed"].any():
            raise InputError(f"{folder.store.url}: clip_std is 0 everywhere, so this prior has never been trained")
        normaliser.load_state_dict(statistics)
    return Prior(config, build_network_with(config, tensors), normaliser)


def _read_weights(store: Store, config: PriorConfig) -> dict[str, torch.Tensor]:
    """Read the weights of a network and its statistics, after all names and shapes have been checked.

    Raises:
        InputError: there are no weights, or they do not fit the config.
    """
    files = [TensorFile(store, name) for name in _weight_names(store)]
    found = {name: (file, entry.shape) for file in files for name, entry in file.entries.items()}
    expected = {name: tuple(value.shape) for name, value in describe_network(config).state_dict().items()}
    statistics = dict.fromkeys(_STATISTICS, (1, config.embed_dim))
    if transformer_network(config).time_token:
        expected |= statistics
    # ECLIPSE's class has these statistics too, but never uses them; the mask of old files is a constant
    ignored = {*statistics, "causal_attention_mask"} - expected.keys()
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys() - ignored)
    if missing or extra:
        parts = [f"lacks {_some(missing)}"] if missing else []
        parts += [f"also holds {_some(extra)}"] if extra else []
        raise InputError(f"{files[0].source} does not fit {CONFIG_NAME}: it {' and '.join(parts)}")
    for name, shape in expected.items():
        if found[name][1] != shape:
            raise InputError(
                f"{found[name][0].source}: {name} has shape {list(found[name][1])}, {CONFIG_NAME} says {list(shape)}"
            )
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors |= file.read([name for name in expected if found[name][0] is file])
    return tensors


def _weight_names(store: Store) -> list[str]:
    """Return the names of the weight files: one file, or the parts of large weights.

    Raises:
        InputError: there are none, or the list of parts is damaged.
    """
    stem, _, ending = WEIGHTS_NAME.rpartition(".")
    for variant in _VARIANTS:
        if store.size(name := f"{stem}{variant}.{ending}") is not None:
            return [name]
        index = _read_json(store, name := f"{stem}.{ending}.index{variant}.json")
        if index is not None:
            parts = index.get("weight_map")
            if not isinstance(parts, dict) or not parts or not all(isinstance(part, str) for part in parts.values()):
                raise InputError(f"{store.path(name)}: lists no weight files (weight_map); copy it again")
            names = sorted(set(parts.values()))
            if absent := [name for name in names if store.size(name) is None]:
                raise InputError(f"{store.url}: lacks {absent[0]}, which {name} lists; copy all files again")
            return names
    others = [name for name in store.names() if "/" not in name and name.startswith(stem)]
    hint = f"; {others[0]} is no safetensors file, save the model again with save_pretrained" if others else ""
    raise InputError(f"{store.url}: has no {WEIGHTS_NAME}, nor {stem}.fp16.{ending}{hint}")


def _some(names: list[str]) -> str:
    """Return names for a message: the first three, and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
