"""Plan for loading a CLIP model with open_clip: model name, weights, preprocessing and activation.

Functions receive the open_clip module in the argument `library`, because only the module `encoder` imports it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from .convert.torchscript import is_torchscript, stated_activation, stated_by_archive
from .file_kinds import require_weights
from .files import CONFIG_NAME, find_weights, read_clip_config, require_content
from .names import explain_name
from .preprocess import TRAINED_FIELDS, as_trained, decide
from .settings import ClipSettings
from .source import LOCAL_PREFIX, ClipSource


@dataclass(frozen=True)
class ClipPlan:
    """Arguments for loading a CLIP model with open_clip. `plan_clip` derives them from the settings."""

    name: str
    """Model name to pass to open_clip."""
    pretrained: str | None
    """Tag or absolute path of weights to pass to open_clip; None if the model name is a folder or a Hub repository."""
    weights: Path | None
    """Weight file to load after the model is built; None if open_clip loads the weights while it builds the model.

    It is set for a model in a folder, because priorkit chooses the file with `find_weights`, and open_clip would choose
    by different rules. It is also set for TorchScript archives, which open_clip does not load.
    """
    trained: dict[str, Any]
    """Preprocessing and activation values to pass to open_clip, keyed by name in `TRAINED_FIELDS`.

    They replace the values that open_clip would otherwise use.
    """


def plan_clip(settings: ClipSettings, source: ClipSource, library: Any) -> ClipPlan:
    """Determine how to load a CLIP model with open_clip, without loading it.

    Args:
        settings: settings of the model.
        source: source of the weights, from `parse_source`.
        library: the open_clip module.

    Raises:
        InputError: open_clip does not know the model or the tag, a local folder has no usable weights, or it cannot be
            determined which preprocessing or activation the weights in a local file or folder need.
    """
    given = _given(settings)
    if source.folder is not None:
        weights, config = find_weights(source.folder).absolute(), read_clip_config(source.folder / CONFIG_NAME)
        require_weights(weights)
        _require_activation(settings, weights, config or {})
        trained = trained_by_config(settings, config, library)
        return ClipPlan(f"{LOCAL_PREFIX}{source.folder}", None, weights, trained)
    if source.kind == "hub":
        return ClipPlan(settings.model, None, None, given)
    _require_names(settings, library, has_file=source.file is not None)
    if source.file is None:
        return ClipPlan(settings.model, settings.pretrained, None, given)
    path = Path(os.path.abspath(source.file))
    require_content(path)
    require_weights(path)
    trained = _trained_by_neighbours(settings, path, library)
    if is_torchscript(path):
        return ClipPlan(settings.model, None, path, trained)
    return ClipPlan(settings.model, str(path), None, trained)


def _require_activation(settings: ClipSettings, weights: Path, config: Mapping[str, Any]) -> None:
    """Check that the activation in a folder's config is that of its TorchScript archive, unless the settings name one.

    Raises:
        InputError: the activations differ. Other weight files do not contain the activation.
    """
    stated = stated_activation(weights) if is_torchscript(weights) else None
    configured = bool(config.get("model_cfg", {}).get("quick_gelu"))
    if settings.quick_gelu is None and stated not in (None, configured):
        raise InputError(
            f"{weights}: its code uses {'QuickGELU' if stated else 'GELU'}, but {CONFIG_NAME} beside it says "
            f"quick_gelu={str(configured).lower()}; correct the config, or set embed.clip.quick_gelu"
        )


def _require_names(settings: ClipSettings, library: Any, *, has_file: bool) -> None:
    """Check that open_clip knows the model and its tag. The tag is not checked if the weights come from a file.

    Raises:
        InputError: open_clip does not know the model or the tag. The message lists similar names.
    """
    if settings.model not in library.list_models():
        if explained := explain_name(settings.model):
            raise InputError(f"embed.clip.model={settings.model}: {explained}")
        nearest = difflib.get_close_matches(settings.model, library.list_models(), n=3, cutoff=0.4)
        raise InputError(
            f"embed.clip.model={settings.model}: open_clip has no such model; nearest: {', '.join(nearest) or 'none'}"
        )
    tags = library.list_pretrained_tags_by_model(settings.model)
    if settings.pretrained not in tags and not has_file:
        nearest = difflib.get_close_matches(str(settings.pretrained), tags, n=3, cutoff=0.0)
        raise InputError(
            f"embed.clip.pretrained={settings.pretrained}: neither a file nor one of the {len(tags)} tags of "
            f"{settings.model}; nearest: {', '.join(nearest) or 'none'}"
        )


def _given(settings: ClipSettings) -> dict[str, Any]:
    """Return the preprocessing and activation values that are set in the settings, keyed by `TRAINED_FIELDS` name."""
    overrides = settings.overrides()
    flat = {**overrides.get("preprocess", {}), **overrides}
    return {name: flat[name] for name in TRAINED_FIELDS if name in flat}


def hub_config(repository: str, library: Any) -> dict[str, Any] | None:
    """Return the open_clip config of a Hugging Face Hub model, downloading it unless it is in the local cache."""
    return read_clip_config(Path(library.pretrained.download_pretrained_from_hf(repository, filename=CONFIG_NAME)))


def trained_by_config(settings: ClipSettings, config: dict[str, Any] | None, library: Any) -> dict[str, Any]:
    """Return the preprocessing and activation values to pass to open_clip, for a model from a folder or a hub.

    If `config` is None, return only the values from the settings. Do the same if `config` contains
    preprocessing values, because open_clip then reads the other values from the config itself.

    Otherwise, each value is taken from the first source that has it: the settings, the config, or open_clip's
    pretrained tags for models with the same architecture.

    Args:
        settings: settings of the model.
        config: open_clip config of the model; None if the model has no config.
        library: the open_clip module.

    Returns:
        Values keyed by name in `TRAINED_FIELDS`.

    Raises:
        InputError: a value is in neither the settings nor the config, and these tags have different values for it.
    """
    given = _given(settings)
    if config is None or config.get("preprocess_cfg"):
        return given
    stated = {"quick_gelu": bool(config["model_cfg"].get("quick_gelu"))}
    wanted_architecture = architecture(config["model_cfg"], library)
    names = [
        name
        for name in library.list_models()
        if architecture(library.get_model_config(name), library) == wanted_architecture
    ]
    tags = {tag: trained for name in names for tag, trained in _tags(name, library).items()}
    wanted = f"embed.clip.model={settings.model}"
    return decide(given, stated, tags, open_clip_defaults(False, library), wanted, " and ".join(names))


def _trained_by_neighbours(settings: ClipSettings, path: Path, library: Any) -> dict[str, Any]:
    """Return the preprocessing and activation values for a weight file, keyed by name in `TRAINED_FIELDS`.

    Each value is taken from the first source that has it: the settings, a config in the same folder as the file, the
    TorchScript archive itself, or open_clip's pretrained tags for the model.

    Args:
        settings: settings of the model.
        path: path of the weight file.
        library: the open_clip module.

    Raises:
        InputError: the config belongs to a different model; or a value is in neither the settings nor the config, and
            the tags have different values for it.
    """
    model_config = library.get_model_config(settings.model)
    defaults = open_clip_defaults(bool(model_config.get("quick_gelu")), library)
    wanted = f"embed.clip.pretrained={settings.pretrained}"
    stated = stated_by_archive(path, open_clip_defaults(True, library))
    config = read_clip_config(path.parent / CONFIG_NAME)
    if config is not None:
        if _shape(config["model_cfg"], library) != _shape(model_config, library):
            raise InputError(
                f"{wanted}: the {CONFIG_NAME} beside it is not that of {settings.model}; give --model "
                f"local-dir:{path.parent}, or move the weights out of that folder"
            )
        model, preprocess = config["model_cfg"], config.get("preprocess_cfg")
        stated = {**stated, "quick_gelu": bool(model.get("quick_gelu"))}
        if preprocess:
            stated = as_trained({**stated, **preprocess}, defaults)
    return decide(_given(settings), stated, _tags(settings.model, library), defaults, wanted, settings.model)


def _tags(model: str, library: Any) -> dict[str, dict[str, Any]]:
    """Return the preprocessing and activation values of each open_clip pretrained tag of a model, keyed by tag."""
    defaults = open_clip_defaults(False, library)
    tags = library.list_pretrained_tags_by_model(model)
    return {tag: as_trained(library.pretrained.get_pretrained_cfg(model, tag), defaults) for tag in tags}


def open_clip_defaults(quick_gelu: bool, library: Any) -> dict[str, Any]:
    """Return open_clip's default preprocessing values (those of OpenAI's models) and the given activation.

    Args:
        quick_gelu: activation to include in the result: True for QuickGELU, False for GELU.
        library: the open_clip module.

    Returns:
        Values keyed by name in `TRAINED_FIELDS`.
    """
    return as_trained({"quick_gelu": quick_gelu, **vars(library.transform.PreprocessCfg())}, {})


def _shape(config: dict[str, Any], library: Any) -> list[Any]:
    """Return the values in an open_clip config that determine the names and shapes of the model's tensors.

    They are compared with those of another config, to find out whether both configs describe the same model.
    """
    vision = {**vars(library.CLIPVisionCfg()), **config.get("vision_cfg", {})}
    text = {**vars(library.CLIPTextCfg()), **config.get("text_cfg", {})}
    names = ("timm_model_name", "image_size", "layers", "width", "patch_size")
    texts = ("hf_model_name", "context_length", "vocab_size", "layers", "width")
    return [config.get("embed_dim"), [vision[name] for name in names], [text[name] for name in texts]]


def architecture(config: Mapping[str, Any], library: Any) -> dict[str, Any]:
    """Return the part of a model's config that describes its architecture.

    Two models have the same architecture if the results for their configs are equal. The activation, values that equal
    open_clip's defaults, and values that affect only training or the initial weights are left out.
    """
    left_out = ("quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias")
    remaining = {name: value for name, value in config.items() if name not in left_out}
    for part, kind in (("vision_cfg", library.CLIPVisionCfg), ("text_cfg", library.CLIPTextCfg)):
        defaults = vars(kind())
        pretrained = ("timm_model_pretrained", "hf_model_pretrained", "patch_dropout")
        remaining[part] = {
            name: value
            for name, value in remaining.get(part, {}).items()
            if name not in pretrained and (name not in defaults or value != defaults[name])
        }
    return remaining
