"""Priors from wherever they are: our folders, and DALLE2-pytorch's checkpoints; and from one to the other."""

from __future__ import annotations

import json
import os
from typing import Any, BinaryIO, cast

import torch

from ...pipeline.clip.settings import ClipSettings
from ...pipeline.contract.manifest import MANIFEST_NAME, read_manifest
from ...pipeline.contract.storage import Store, check_name, open_location
from ...pipeline.errors import FolderError, InputError, SettingsError
from ...pipeline.settings import parse_settings
from ..model.folder import CONFIG_NAME, STATE_FOLDER, WEIGHTS_NAME, load_best, load_folder, load_state, save_prior
from ..model.prior import Prior
from ..model.settings import WeightsName
from ..network.function_version import FunctionVersion
from .dalle2_settings import NAMED_CONFIGS, parse_config, to_dalle2_config, to_prior_config
from .dalle2_weights import export_weights, import_prior, trainer_checkpoint
from .pth import read_pth
from .pth_weights import choose_weights, stored_version

_PTH = (".pth", ".pt")


def load_prior(
    path: str | os.PathLike[str] = "data/prior",
    device: str = "cpu",
    dtype: str = "float32",
    *,
    config: str | None = None,
    weights: WeightsName = "ema",
    function_version: str | None = None,
    clip: dict[str, Any] | None = None,
) -> Prior:
    """Load a prior: a folder of ours, or a checkpoint of DALLE2-pytorch's trainer (`.pth`); local or remote.

    Args:
        device: where to sample, such as `cpu` or `cuda`.
        dtype: of large products: `float32`, or `bfloat16` for about twice the speed.
        config: of a checkpoint: the JSON of its training script, or `laion-model-card` for the settings of LAION's.
        weights: averaged (`ema`), those that were trained (`online`), which our folders keep in their newest
            checkpoint, or the averaged ones that did best in validation while they were trained here (`best`).
        function_version: of a checkpoint: release of dalle2-pytorch whose function it is, such as 0.23.10, in place of
            the one that it stores; needed where it stores none.
        clip: of a checkpoint: `model` and `pretrained` of its CLIP in open_clip, where its settings do not name it.

    Raises:
        InputError: no prior is there, or a file is damaged or does not fit its settings; says which.
        SettingsError: an argument is missing, out of range, or of no meaning for what is loaded.
    """
    path = os.fspath(path)
    if is_pth(path, config=config, function_version=function_version, clip=clip):
        assert config is not None
        prior = _load_pth(path, config, weights, function_version, clip)
    else:
        if weights not in ("ema", "online", "best"):
            raise SettingsError(f"weights={weights!r}: known are ema, online and best")
        prior = load_folder(path)
        if weights != "ema":
            prior.network.load_state_dict(_trained_weights(path, weights))
    return prior.to(device, dtype)


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
    """Write a prior as a folder of ours, or (`.pth`) as a checkpoint of DALLE2-pytorch 1.15.6's trainer.

    Beside a checkpoint goes a JSON of its settings, by the same name.

    Args:
        overwrite: replace what is there.
        config: as for `load_prior`, and so the following.
        weights: `ema`, `online` or `best`.
        function_version: of a checkpoint.
        clip: of a checkpoint.

    Raises:
        FolderError: the destination exists, or holds a training.
        SettingsError: DALLE2-pytorch has no such prior.
    """
    destination = os.fspath(destination)
    prior = load_prior(source, config=config, weights=weights, function_version=function_version, clip=clip)
    try:
        if destination.endswith(_PTH):
            _write_pth(prior, destination, overwrite)
        else:
            _write_folder(prior, destination, overwrite)
    except (NotADirectoryError, FileExistsError, IsADirectoryError) as error:
        raise FolderError(f"{destination}: {error.filename or error} is in the way; choose another place") from None


def find_clip(model: str | None, pretrained: str | None) -> dict[str, Any] | None:
    """The argument `clip` of `load_prior`, from the name of an open_clip model and its weights; None of neither.

    Raises:
        SettingsError, InputError: no such CLIP is to be had.
    """
    if model is None:
        if pretrained is not None:
            raise SettingsError("--clip-pretrained: give --clip, the model that these weights belong to")
        return None
    from ...pipeline.clip.encoder import check_clip, clip_location

    settings = parse_settings(ClipSettings, {"model": model, "pretrained": pretrained}, "--clip")
    check_clip(settings)
    return clip_location(settings)


def is_pth(path: str, **options: Any) -> bool:
    """Whether a path is that of a checkpoint.

    Args:
        options: arguments of `load_prior` that belong to checkpoints, `config` first.

    Raises:
        SettingsError: it is one and `config` is missing, or it is none and an option is given.
    """
    if path.endswith(_PTH):
        if options["config"] is None:
            names = ", ".join(NAMED_CONFIGS)
            raise SettingsError(f"{path}: give config=, the JSON of its training script, or one of {names}")
        return True
    _refuse_other_files(path)
    if given := [name for name, value in options.items() if value is not None]:
        raise SettingsError(f"{given[0]}= belongs to checkpoints ({' or '.join(_PTH)}); {path} is none")
    return False


def _refuse_other_files(path: str) -> None:
    """SettingsError if a path is a file that may be a checkpoint under a name that is not read."""
    name = path.rstrip("/").rpartition("/")[2]
    ending = name[name.rfind(".") :] if "." in name.lstrip(".") else ""
    if not ending or ending == ".npy":  # predictions, for `evaluate`
        return
    fs, location = open_location(path)
    if not fs.isfile(location):
        return
    if ending.lower() == ".safetensors":
        raise SettingsError(
            f"{path}: a prior is a folder with config.json and {WEIGHTS_NAME}, or a checkpoint ({' or '.join(_PTH)}); "
            "name the folder of this file"
        )
    raise SettingsError(
        f"{path}: checkpoints of dalle2-pytorch are read by their ending, {' or '.join(_PTH)}; if it is one, rename it "
        "to .pth"
    )


def _load_pth(
    path: str, config: str, weights: WeightsName, function_version: str | None, clip: dict[str, Any] | None
) -> Prior:
    described = parse_config(read_config(config), config)
    content = read_pth(path)
    state = choose_weights(content, weights, path)
    if function_version is None:
        function_version = stored_version(content, path)
    try:
        function = FunctionVersion.parse(function_version)
    except ValueError as error:
        raise SettingsError(f"{path}: function_version: {error}") from None
    prior_config = to_prior_config(described, function, config)
    if clip is not None:
        located = parse_settings(ClipSettings, {"pretrained": None, **clip}, "clip")
        prior_config = prior_config.model_copy(update={"clip_settings": located.identity()})
    return import_prior(state, prior_config, path)


def read_config(config: str) -> Any:
    """The JSON of a checkpoint's settings, by the place of its file or a name; SettingsError if it is neither."""
    if config in NAMED_CONFIGS:
        return NAMED_CONFIGS[config]
    fs, location = open_location(config)
    try:
        with fs.open(location, "rb") as file:
            return json.loads(file.read())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise SettingsError(f"config={config!r}: neither a file nor one of {', '.join(NAMED_CONFIGS)}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{config}: not JSON ({error})") from None


def _trained_weights(path: str, weights: WeightsName) -> dict[str, torch.Tensor]:
    """Those that were trained, of which the averaged ones are an average; or the best averaged ones."""
    store = Store(path)
    manifest = read_manifest(store)
    if weights == "best":
        best = None if manifest is None else load_best(store, manifest.settings_fingerprint)
        if best is None:
            raise InputError(f"{path}: weights='best' are kept by a training that validates, and there are none")
        return best
    state = None if manifest is None else load_state(store, manifest.settings_fingerprint)
    if state is None:
        raise InputError(f"{path}: weights='online' are in a training's checkpoints, and there are none; use 'ema'")
    return state.network


def _write_folder(prior: Prior, destination: str, overwrite: bool) -> None:
    store = Store(destination)
    if store.size(MANIFEST_NAME) is not None or store.names(STATE_FOLDER):
        raise FolderError(f"{destination} is the folder of a training; choose another")
    if store.size(CONFIG_NAME) is not None:
        if not overwrite:
            raise FolderError(f"{destination} holds a prior; choose another folder, or --overwrite")
        store.remove(CONFIG_NAME)  # first, so that a kill leaves no settings beside the weights of others
    save_prior(store.create, prior.config, prior.network, prior.normaliser)


def _write_pth(prior: Prior, destination: str, overwrite: bool) -> None:
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
