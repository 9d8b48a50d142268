"""Loading and converting priors: priorkit folders, DALLE2-pytorch checkpoints (`.pth`) and folders of diffusers."""

from __future__ import annotations

import json
import os
from typing import Any, BinaryIO, cast

import torch

from ...pipeline.clip.settings import ClipSettings
from ...pipeline.clip.source import clip_location
from ...pipeline.contract.manifest import MANIFEST_NAME, read_manifest
from ...pipeline.contract.storage import Store, check_name, open_location
from ...pipeline.errors import FolderError, InputError, SettingsError
from ...pipeline.json_text import parse_json
from ...pipeline.settings import parse_settings
from ..model.folder import CONFIG_NAME, STATE_FOLDER, WEIGHTS_NAME, load_best, load_folder, load_state, save_prior
from ..model.prior import Prior
from ..model.settings import WeightsName
from ..network.function_version import FunctionVersion
from ..network.lora import adapters_among, is_adapter_weight, merge
from .adapter_file import apply_adapters, read_adapters
from .dalle2_settings import NAMED_CONFIGS, parse_config, to_dalle2_config, to_prior_config
from .dalle2_weights import export_weights, import_prior, trainer_checkpoint
from .diffusers.load import INDEX_NAME, find_transformer, is_transformer, load_transformer
from .pth import read_pth
from .pth_weights import choose_weights, stored_version

PTH_SUFFIXES = (".pth", ".pt")
"""File extensions of DALLE2-pytorch checkpoints."""


def load_prior(
    path: str | os.PathLike[str] = "data/prior",
    device: str = "cpu",
    dtype: str = "float32",
    *,
    config: str | None = None,
    weights: WeightsName = "ema",
    function_version: str | None = None,
    clip: dict[str, Any] | None = None,
    lora: str | os.PathLike[str] | None = None,
) -> Prior:
    """Load a prior, local or remote, from a priorkit folder, a DALLE2-pytorch checkpoint (`.pth`) or diffusers' folder.

    Args:
        path: prior folder, `.pth` file, or folder of a `PriorTransformer` of diffusers or of a pipeline with one. The
            folder of a pipeline also provides the range to which the prior's scheduler clamps estimates.
        device: device to sample on, such as `cpu` or `cuda`.
        dtype: precision of large matrix products: `float32`, or `bfloat16` for about twice the speed.
        config: path or URL of the JSON file with the settings that a `.pth` was trained with, or `laion-model-card` for
            the settings in the model card of LAION's prior. Required for a `.pth`.
        weights: `ema` for the averaged weights, `online` for the weights that the optimiser updates, or `best` for the
            averaged weights from the validation run with the lowest loss. A `.pth` has no `best` weights. The `online`
            weights of a folder come from its newest training checkpoint. A folder of diffusers has one set, `ema`.
        function_version: dalle2-pytorch release whose network implementation the `.pth` needs, such as 0.23.10.
            Required if the file stores no version; otherwise, this argument overrides the stored version.
        clip: dictionary with the `model` and `pretrained` names of the open_clip model that the prior was trained with.
            Pass this argument for a folder of diffusers, and for a `.pth` whose settings do not name the CLIP model.
        lora: file of low-rank adapters (LoRA) to add to the weights, or folder with `pytorch_lora_weights.safetensors`,
            local or remote. Names in peft's layout and in that of diffusers' attention processors are known.

    Raises:
        InputError: there is no prior at `path`, or a file is damaged or does not match its settings.
        SettingsError: an argument is missing, out of range, or does not apply to this kind of prior.
    """
    prior = _load(os.fspath(path), config, weights, function_version, clip)
    if lora is not None:
        apply_adapters(prior, read_adapters(lora), os.fspath(lora))
    return prior.to(device, dtype)


def _load(
    path: str, config: str | None, weights: WeightsName, function_version: str | None, clip: dict[str, Any] | None
) -> Prior:
    """Load a prior onto the CPU; see `load_prior` for the arguments."""
    if is_pth(path, config=config, function_version=function_version):
        assert config is not None
        return _load_pth(path, config, weights, function_version, clip)
    if weights not in ("ema", "online", "best"):
        raise SettingsError(f"weights={weights!r}: known are ema, online and best")
    if (folder := find_transformer(path)) is not None:
        if weights != "ema":
            raise SettingsError(f"weights={weights!r}: {path} is a folder of diffusers, which holds one set; use ema")
        return load_transformer(folder, {} if clip is None else _located(clip))
    if clip is not None:
        raise SettingsError(
            f"clip= belongs to checkpoints ({' or '.join(PTH_SUFFIXES)}) and folders of diffusers; {path} is neither"
        )
    prior = load_folder(path)
    if weights != "ema":
        _replace_weights(prior, path, _training_weights(path, weights))
    return prior


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    config: str | None = None,
    weights: WeightsName = "ema",
    function_version: str | None = None,
    clip: dict[str, Any] | None = None,
) -> None:
    """Convert a prior to a priorkit folder or to a checkpoint (`.pth`) for the trainer of DALLE2-pytorch 1.15.6.

    The settings of a checkpoint are written next to it, in a JSON file with the same base name.

    Args:
        source: prior folder, `.pth` file or folder of diffusers, as for `load_prior`.
        destination: folder or `.pth` file to write.
        overwrite: replace existing files.
        config: settings of a source `.pth`, as for `load_prior`.
        weights: weights to convert: `ema`, `online` or `best`.
        function_version: dalle2-pytorch release for a source `.pth`, as for `load_prior`.
        clip: CLIP model for a source `.pth` or folder of diffusers, as for `load_prior`.

    Raises:
        FolderError: the destination exists and `overwrite` is False, or it is the folder of a training run or of
            diffusers.
        InputError: there is no prior at `source`, or a file is damaged or does not match its settings.
        SettingsError: an argument is missing or invalid, or DALLE2-pytorch does not support the prior's settings.
    """
    destination = os.fspath(destination)
    prior = load_prior(source, config=config, weights=weights, function_version=function_version, clip=clip)
    try:
        if destination.endswith(PTH_SUFFIXES):
            _write_pth(prior, destination, overwrite)
        else:
            _write_folder(prior, destination, overwrite)
    except (NotADirectoryError, FileExistsError, IsADirectoryError) as error:
        raise FolderError(f"{destination}: {error.filename or error} is in the way; choose another place") from None


def find_clip(model: str | None, pretrained: str | None) -> dict[str, Any] | None:
    """Convert the names of an open_clip model and its weights to the `clip` argument of `load_prior`.

    If both names are None, return None.

    Raises:
        SettingsError: the model or its weights are unknown, or weights are given without a model.
        InputError: the files of the CLIP model are missing or damaged.
    """
    if model is None:
        if pretrained is not None:
            raise SettingsError("--clip-pretrained: give --clip, the model that these weights belong to")
        return None
    from ...pipeline.clip.encoder import check_clip

    settings = parse_settings(ClipSettings, {"model": model, "pretrained": pretrained}, "--clip")
    check_clip(settings)
    return clip_location(settings)


def is_pth(path: str, **options: Any) -> bool:
    """Return True if `path` ends with `.pth` or `.pt`, and check that the given options are valid for this path.

    Args:
        path: prior folder, DALLE2-pytorch checkpoint (`.pth` or `.pt`), or `.npy` file with predictions.
        options: arguments of `load_prior` that apply only to a checkpoint, including `config`; None means that the user
            did not set the argument.

    Raises:
        SettingsError: `config` is None for a checkpoint, an option is not None for any other path, or `path` is an
            existing file of an unsupported type.
    """
    if path.endswith(PTH_SUFFIXES):
        if options["config"] is None:
            names = ", ".join(NAMED_CONFIGS)
            raise SettingsError(f"{path}: give config=, the JSON of its training script, or one of {names}")
        return True
    _refuse_other_files(path)
    if given := [name for name, value in options.items() if value is not None]:
        raise SettingsError(f"{given[0]}= belongs to checkpoints ({' or '.join(PTH_SUFFIXES)}); {path} is none")
    return False


def _refuse_other_files(path: str) -> None:
    """Raise SettingsError if `path` is an existing file with an unsupported extension, such as `.ckpt`.

    Call this only for paths that do not end with `.pth` or `.pt`. Folders, missing files and files without an extension
    are accepted. So are `.npy` files, because `evaluate` reads predictions from them.
    """
    name = path.rstrip("/").rpartition("/")[2]
    ending = name[name.rfind(".") :] if "." in name.lstrip(".") else ""
    if not ending or ending == ".npy":  # `evaluate` reads predictions from `.npy`
        return
    fs, location = open_location(path)
    if not fs.isfile(location):
        return
    if ending.lower() == ".safetensors":
        raise SettingsError(
            f"{path}: a prior is a folder with config.json and {WEIGHTS_NAME}, or a checkpoint "
            f"({' or '.join(PTH_SUFFIXES)}); name the folder of this file"
        )
    raise SettingsError(
        f"{path}: checkpoints of dalle2-pytorch are read by their ending, {' or '.join(PTH_SUFFIXES)}; if it is one, "
        "rename it to .pth"
    )


def _load_pth(
    path: str, config: str, weights: WeightsName, function_version: str | None, clip: dict[str, Any] | None
) -> Prior:
    """Load a prior from a DALLE2-pytorch checkpoint onto the CPU."""
    described = parse_config(read_config(config), config)
    content = read_pth(path)
    tensors = choose_weights(content, weights, path)
    if function_version is None:
        function_version = stored_version(content, path)
    try:
        function = FunctionVersion.parse(function_version)
    except ValueError as error:
        raise SettingsError(f"{path}: function_version: {error}") from None
    prior_config = to_prior_config(described, function, config)
    if clip is not None:
        prior_config = prior_config.model_copy(update={"clip_settings": _located(clip)})
    return import_prior(tensors, prior_config, path)


def _located(clip: dict[str, Any]) -> dict[str, Any]:
    """Return the settings for loading a CLIP model, from the `clip` argument of `load_prior`.

    Raises:
        SettingsError: a key is unknown, or the names contradict each other.
    """
    return parse_settings(ClipSettings, {"pretrained": None, **clip}, "clip").identity()


def read_config(config: str) -> Any:
    """Read the settings of a DALLE2-pytorch checkpoint, as parsed JSON. Their content is not checked.

    Args:
        config: path or URL of a JSON file, or name of built-in settings, such as `laion-model-card`.

    Raises:
        SettingsError: `config` is neither an existing file nor the name of built-in settings.
        InputError: the file is not JSON.
    """
    if config in NAMED_CONFIGS:
        return NAMED_CONFIGS[config]
    fs, location = open_location(config)
    try:
        with fs.open(location, "rb") as file:
            return parse_json(file.read())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise SettingsError(f"config={config!r}: neither a file nor one of {', '.join(NAMED_CONFIGS)}") from None
    except ValueError as error:
        raise InputError(f"{config}: not JSON ({error})") from None


def _training_weights(path: str, weights: WeightsName) -> dict[str, torch.Tensor]:
    """Read the `online` or `best` weights from a folder in which priorkit trained a prior.

    Raises:
        InputError: the folder does not contain these weights.
    """
    store = Store(path)
    manifest = read_manifest(store)
    if weights == "best":
        best = None if manifest is None else load_best(store, manifest.settings_fingerprint)
        if best is None:
            raise InputError(f"{path}: weights='best' are kept by a training that validates, and there are none")
        return best
    checkpoint = None if manifest is None else load_state(store, manifest.settings_fingerprint)
    if checkpoint is None:
        raise InputError(f"{path}: weights='online' are in a training's checkpoints, and there are none; use 'ema'")
    return checkpoint.network


def _replace_weights(prior: Prior, path: str, weights: dict[str, torch.Tensor]) -> None:
    """Give a prior that was loaded from a folder other weights of its training.

    If the training trained adapters, `weights` are theirs only. The merged adapters are then replaced.
    """
    if not any(is_adapter_weight(name) for name in weights):
        prior.network.load_state_dict(weights)
        return
    published = read_adapters(path)
    base = merge(prior.network.state_dict(), published, -1)
    scale = next(iter(published.values())).scale
    prior.network.load_state_dict(merge(base, adapters_among(weights, scale)))


def _write_folder(prior: Prior, destination: str, overwrite: bool) -> None:
    """Write a prior to a priorkit folder.

    Raises:
        FolderError: the folder belongs to a training run or to diffusers, or it already contains a prior and
            `overwrite` is False.
    """
    store = Store(destination)
    if store.size(MANIFEST_NAME) is not None or store.names(STATE_FOLDER):
        raise FolderError(f"{destination} is the folder of a training; choose another")
    if is_transformer(store) or store.size(INDEX_NAME) is not None:
        raise FolderError(f"{destination} is a folder of diffusers; choose another")
    if store.size(CONFIG_NAME) is not None:
        if not overwrite:
            raise FolderError(f"{destination} holds a prior; choose another folder, or --overwrite")
        store.remove(CONFIG_NAME)  # removed first, so that an interruption never leaves an old config with new weights
    config = prior.config.model_copy(update={"lora": False})  # the adapters are not written
    save_prior(store.create, config, prior.network, prior.normaliser, prior.empty)


def _write_pth(prior: Prior, destination: str, overwrite: bool) -> None:
    """Write a DALLE2-pytorch checkpoint and, next to it, a JSON file with its settings.

    Raises:
        FolderError: the checkpoint or its settings file exists and `overwrite` is False.
        SettingsError: the file name contains characters that are not allowed, or the prior cannot be exported.
    """
    fs, location = open_location(destination)
    folder, _, name = location.rpartition("/")
    try:
        settings_name = f"{check_name(name).rpartition('.')[0]}.json"
    except InputError:
        raise SettingsError(f"{destination}: name the file with letters, digits, '.', '_' and '-' only") from None
    store = Store(fs.unstrip_protocol(folder or "/"))
    for existing in (name, settings_name):
        if store.size(existing) is not None and not overwrite:
            raise FolderError(f"{store.path(existing)} exists; choose another name, or --overwrite")
    content = trainer_checkpoint(export_weights(prior), prior.schedule.alpha_bar)
    with store.create(settings_name) as file:
        file.write((json.dumps({"prior": to_dalle2_config(prior.config)}, indent=1) + "\n").encode())
    with store.create(name) as file:
        torch.save(content, cast(BinaryIO, file))
