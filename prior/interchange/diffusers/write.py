"""Writing of a prior to a folder of diffusers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ....pipeline.contract.hashing import HashingFile
from ....pipeline.contract.manifest import MANIFEST_NAME
from ....pipeline.contract.storage import Store
from ....pipeline.errors import FolderError, InputError
from ...model.config import PriorConfig
from ...model.folder import STATE_FOLDER
from ...model.prior import Prior
from ...model.tensor_file import write_tensors
from ...network.lora import LayerAdapter
from ..adapter_file import ADAPTER_NAME, write_adapters
from .load import CONFIG_NAME, INDEX_NAME, SCHEDULER_CONFIG_NAME, WEIGHTS_NAME
from .readme import README_NAME, readme
from .settings import CLASS_NAME, to_scheduler_config, to_transformer_config, transformer_network

DTYPES = {"float32": torch.float32, "float16": torch.float16}
"""Dtypes that weights can be exported in, by name."""
_PROJECTION = "proj_to_clip_embeddings"
"""Name of the layer that predicts the image embedding."""


def write_transformer(
    prior: Prior, store: Store, dtype: str, adapters: Mapping[str, LayerAdapter], *, overwrite: bool
) -> list[str]:
    """Write a prior that `require_exportable` accepts, and return the names of the files.

    The file that makes the folder loadable is written last, and an earlier one is removed first. If writing fails, all
    written files are removed.

    Args:
        store: folder to write.
        dtype: dtype of the weights; a key of `DTYPES`.
        adapters: adapters to write beside the weights, by the name of their layer; may be empty.
        overwrite: replace the files of an earlier export.

    Raises:
        FolderError: the folder holds an export and `overwrite` is False, or it is the folder of a priorkit prior.
        InputError: a weight is too large for float16.
    """
    is_pipeline = transformer_network(prior.config).time_token
    inner = "prior/" if is_pipeline else ""
    tensors = _tensors(prior)
    _require_range(tensors, dtype)
    files: dict[str, Callable[[HashingFile], Any]] = {
        f"{inner}{WEIGHTS_NAME}": lambda file: write_tensors(file, tensors, DTYPES[dtype], {"format": "pt"}),
        f"{inner}{CONFIG_NAME}": _json_writer(to_transformer_config(prior.config)),
        README_NAME: lambda file: file.write(readme(prior.config, dtype, bool(adapters)).encode()),
    }
    if adapters:
        files[f"{inner}{ADAPTER_NAME}"] = lambda file: write_adapters(file, adapters, DTYPES[dtype])
    if is_pipeline:
        files[f"scheduler/{SCHEDULER_CONFIG_NAME}"] = _json_writer(to_scheduler_config(prior.config))
        files[INDEX_NAME] = _json_writer(_index())
    last = INDEX_NAME if is_pipeline else f"{inner}{CONFIG_NAME}"
    names = [*(name for name in files if name != last), last]
    _require_place(store, names, prior.config, overwrite=overwrite)
    written = []
    try:
        store.remove(last)
        if not adapters:
            store.remove(f"{inner}{ADAPTER_NAME}")  # of an earlier export, which would be applied again
        for name in names:
            with store.create(name) as file:
                written.append(name)
                files[name](file)
    except BaseException:
        for name in written:
            with contextlib.suppress(OSError):
                store.remove(name)
        raise
    return sorted(names)


def _require_place(store: Store, names: list[str], config: PriorConfig, *, overwrite: bool) -> None:
    """Check that the files may be written.

    Raises:
        FolderError: they may not.
    """
    if store.size(MANIFEST_NAME) is not None or store.names(STATE_FOLDER):
        raise FolderError(f"{store.url} is a folder that priorkit made; choose another")
    existing = [name for name in names if store.size(name) is not None]
    if existing and not overwrite:
        raise FolderError(f"{store.path(existing[0])} exists; choose another folder, or --overwrite")
    if (config_name := CONFIG_NAME) in names and store.size(config_name) is not None:
        described = store.read_json(config_name)
        if not isinstance(described, dict) or described.get("_class_name") != CLASS_NAME:
            raise FolderError(f"{store.path(config_name)} is no {CLASS_NAME} of diffusers; choose another folder")


def _tensors(prior: Prior) -> dict[str, torch.Tensor]:
    """Return the weights under diffusers' names, with the statistics of image embeddings."""
    tensors = {name: value.float() for name, value in prior.network.state_dict().items()}
    mean, std = (value.float().cpu() for value in (prior.normaliser.mean, prior.normaliser.to_embed))
    if transformer_network(prior.config).time_token:
        return {**tensors, "clip_mean": mean[None], "clip_std": std[None]}
    # ECLIPSE's class has statistics that it never uses, so they become part of the last layer
    if mean.any() or (std != 1).any():
        weight, bias = (tensors[f"{_PROJECTION}.{part}"].cpu().double() for part in ("weight", "bias"))
        tensors[f"{_PROJECTION}.weight"] = (std.double()[:, None] * weight).float()
        tensors[f"{_PROJECTION}.bias"] = (std.double() * bias + mean.double()).float()
    return {**tensors, "clip_mean": torch.zeros(1, len(mean)), "clip_std": torch.zeros(1, len(std))}


def _require_range(tensors: dict[str, torch.Tensor], dtype: str) -> None:
    """Check that all weights are finite in the dtype.

    Raises:
        InputError: a weight is not.
    """
    limit = torch.finfo(DTYPES[dtype]).max
    for name, value in tensors.items():
        largest = max(float(bound.abs()) for bound in value.aminmax())
        if not largest <= limit:
            raise InputError(f"{name} holds {largest:.3g}, which {dtype} cannot hold; use --dtype float32")


def _index() -> dict[str, Any]:
    """Return the list of components of the pipeline. The CLIP model's components are left to the user."""
    return {
        "_class_name": "KandinskyV22PriorPipeline",
        "prior": ["diffusers", CLASS_NAME],
        "scheduler": ["diffusers", "UnCLIPScheduler"],
    }


def _json_writer(content: dict[str, Any]) -> Callable[[HashingFile], Any]:
    data = (json.dumps(content, indent=2) + "\n").encode()
    return lambda file: file.write(data)
