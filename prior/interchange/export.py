"""Export of trained priors to the folders of other tools."""

from __future__ import annotations

import os

from ...pipeline.contract.storage import Store
from ...pipeline.errors import FolderError, SettingsError
from ..model.prior import Prior
from ..model.settings import WeightsName
from ..network.lora import LayerAdapter
from ..network.lora import merge as merge_adapters
from .adapter_file import read_adapters
from .diffusers.settings import require_exportable
from .diffusers.write import DTYPES, write_transformer
from .load import PTH_SUFFIXES, load_prior

FORMATS = ("diffusers",)
"""Names of the formats."""


def export(
    prior: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    format: str = "diffusers",
    dtype: str = "float32",
    weights: WeightsName = "ema",
    merge: bool = False,
    overwrite: bool = False,
) -> list[str]:
    """Export a prior of the family `prior-transformer` to a folder that diffusers loads.

    The folder is that of a pipeline: `prior/`, `scheduler/`, `model_index.json`, and a README.md with the lines of
    Python that load it. The CLIP model is not part of it. A prior without a timestep's token (ECLIPSE) is written as
    ECLIPSE's class reads it: a folder with `config.json` and the weights.

    Args:
        prior: prior folder, or folder of diffusers.
        folder: local or remote folder to write. Files that do not belong to the export are kept.
        format: `diffusers`.
        dtype: dtype of the weights, `float32` or `float16`.
        weights: weights to export: `ema`, `online` or `best`, as for `load_prior`.
        merge: merge the adapters (LoRA) that training trained into the weights. By default, the weights of the initial
            prior are written, and the adapters beside them as `pytorch_lora_weights.safetensors`.
        overwrite: replace the files of an earlier export.

    Returns:
        Names of the files, relative to the folder.

    Raises:
        FolderError: the folder holds an export and `overwrite` is False, or it is the folder of a training run.
        InputError: there is no prior, a file is damaged, or a weight is too large for float16.
        SettingsError: an argument is invalid, or diffusers has no class for this prior.
    """
    prior, folder = os.fspath(prior), os.fspath(folder)
    if format not in FORMATS:
        raise SettingsError(f"format={format!r}: known is {', '.join(FORMATS)}; `priorkit convert` writes a .pth")
    if dtype not in DTYPES:
        raise SettingsError(f"dtype={dtype!r}: known are {' and '.join(DTYPES)}")
    if prior.endswith(PTH_SUFFIXES):
        raise SettingsError(f"{prior}: diffusers has no network of dalle2-pytorch; use `priorkit convert`, or sample")
    loaded = load_prior(prior, weights=weights)
    try:
        require_exportable(loaded.config)
    except SettingsError as error:
        raise SettingsError(f"{prior}: {error}") from None
    if merge and not loaded.config.lora:
        raise SettingsError(f"merge has no effect: {prior} was not trained with adapters (train.lora); leave it out")
    adapters = {} if merge or not loaded.config.lora else _separate(loaded, prior, weights)
    try:
        return write_transformer(loaded, Store(folder), dtype, adapters, overwrite=overwrite)
    except (NotADirectoryError, FileExistsError, IsADirectoryError) as error:
        raise FolderError(f"{folder}: {error.filename or error} is in the way; choose another place") from None


def _separate(prior: Prior, path: str, weights: WeightsName) -> dict[str, LayerAdapter]:
    """Remove the merged adapters from the weights of a prior, in place, and return them.

    Raises:
        SettingsError: the adapters cannot be exported alone.
    """
    if weights != "ema":
        raise SettingsError(f"weights={weights}: only the adapters of ema are stored alone; set merge (--merge)")
    if not prior.config.network.uses_time:
        raise SettingsError(f"{path}: ECLIPSE's class loads no adapters; set merge (--merge)")
    adapters = read_adapters(path)
    prior.network.load_state_dict(merge_adapters(prior.network.state_dict(), adapters, -1))
    return adapters
