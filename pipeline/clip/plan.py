"""How a CLIP is loaded: its files, and what its weights were trained with.

`library` is always open_clip, which only `clip` imports.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from .files import CONFIG_NAME, LOCAL_PREFIX, find_weights, local_folder, read_clip_config, require_content
from .preprocess import TRAINED_FIELDS, as_trained, decide
from .settings import ClipSettings


@dataclass(frozen=True)
class ClipPlan:
    """How a CLIP is loaded."""

    name: str
    """Model for open_clip."""
    pretrained: str | None
    """Tag or absolute path for open_clip."""
    weights: Path | None
    """File that is loaded after the model was built, since open_clip would choose among a folder's by other rules."""
    trained: dict[str, Any]
    """`TRAINED_FIELDS` in place of those that open_clip would take."""


def plan_clip(settings: ClipSettings, library: Any, is_by_path: bool) -> ClipPlan:
    """Find out how a CLIP is loaded, without loading it.

    Args:
        library: open_clip.
        is_by_path: `pretrained` is a file, not a tag.

    Raises:
        InputError: as for `check_clip`.
    """
    folder, given = local_folder(settings), _given(settings)
    if folder is not None:
        trained = by_config(settings, read_clip_config(folder / CONFIG_NAME), library)
        return ClipPlan(f"{LOCAL_PREFIX}{folder}", None, find_weights(folder).absolute(), trained)
    if ":" in settings.model:
        return ClipPlan(settings.model, None, None, given)
    _require_names(settings, library, is_by_path)
    if not is_by_path:
        return ClipPlan(settings.model, settings.pretrained, None, given)
    path = Path(os.path.abspath(str(settings.pretrained)))
    require_content(path)
    return ClipPlan(settings.model, str(path), None, _by_neighbours(settings, path, library))


def _require_names(settings: ClipSettings, library: Any, is_by_path: bool) -> None:
    if settings.model not in library.list_models():
        nearest = difflib.get_close_matches(settings.model, library.list_models(), n=3, cutoff=0.4)
        raise InputError(
            f"embed.clip.model={settings.model}: open_clip has no such model; nearest: {', '.join(nearest) or 'none'}"
        )
    tags = library.list_pretrained_tags_by_model(settings.model)
    if settings.pretrained not in tags and not is_by_path:
        nearest = difflib.get_close_matches(str(settings.pretrained), tags, n=3, cutoff=0.0)
        raise InputError(
            f"embed.clip.pretrained={settings.pretrained}: neither a file nor one of the {len(tags)} tags of "
            f"{settings.model}; nearest: {', '.join(nearest) or 'none'}"
        )


def _given(settings: ClipSettings) -> dict[str, Any]:
    """`TRAINED_FIELDS` that the settings say."""
    overrides = settings.overrides()
    flat = {**overrides.get("preprocess", {}), **overrides}
    return {name: flat[name] for name in TRAINED_FIELDS if name in flat}


def hub_config(repository: str, library: Any) -> dict[str, Any] | None:
    """The config of a model of a hub, from the cache where it is there."""
    return read_clip_config(Path(library.pretrained.download_pretrained_from_hf(repository, filename=CONFIG_NAME)))


def by_config(settings: ClipSettings, config: dict[str, Any] | None, library: Any) -> dict[str, Any]:
    """What to change for a model that brings its config: nothing where that says its preprocessing."""
    given = _given(settings)
    if config is None or config.get("preprocess_cfg"):
        return given
    stated = {"quick_gelu": bool(config["model_cfg"].get("quick_gelu"))}
    own = architecture(config["model_cfg"], library)
    names = [name for name in library.list_models() if architecture(library.get_model_config(name), library) == own]
    tags = {tag: trained for name in names for tag, trained in _tags(name, library).items()}
    wanted = f"embed.clip.model={settings.model}"
    return decide(given, stated, tags, defaults(False, library), wanted, " and ".join(names))


def _by_neighbours(settings: ClipSettings, path: Path, library: Any) -> dict[str, Any]:
    """What weights by path were trained with: by the config beside them, or the tags of their architecture."""
    own = library.get_model_config(settings.model)
    own_defaults = defaults(bool(own.get("quick_gelu")), library)
    wanted, stated = f"embed.clip.pretrained={settings.pretrained}", {}
    config = read_clip_config(path.parent / CONFIG_NAME)
    if config is not None:
        if _shape(config["model_cfg"], library) != _shape(own, library):
            raise InputError(
                f"{wanted}: the {CONFIG_NAME} beside it is not that of {settings.model}; give --model "
                f"local-dir:{path.parent}, or move the weights out of that folder"
            )
        model, preprocess = config["model_cfg"], config.get("preprocess_cfg")
        stated = {"quick_gelu": bool(model.get("quick_gelu"))}
        if preprocess:
            stated = as_trained({**preprocess, **stated}, own_defaults)
    return decide(_given(settings), stated, _tags(settings.model, library), own_defaults, wanted, settings.model)


def _tags(model: str, library: Any) -> dict[str, dict[str, Any]]:
    """What the weights of each tag of a model were trained with."""
    tags = library.list_pretrained_tags_by_model(model)
    return {
        tag: as_trained(library.pretrained.get_pretrained_cfg(model, tag), defaults(False, library)) for tag in tags
    }


def defaults(quick_gelu: bool, library: Any) -> dict[str, Any]:
    """open_clip's preprocessing where nothing is said, which is OpenAI's, with an activation."""
    return as_trained({"quick_gelu": quick_gelu, **vars(library.transform.PreprocessCfg())}, {})


def _shape(config: dict[str, Any], library: Any) -> list[Any]:
    """Parts of a model's config that give its tensors their names and shapes."""
    vision = {**vars(library.CLIPVisionCfg()), **config.get("vision_cfg", {})}
    text = {**vars(library.CLIPTextCfg()), **config.get("text_cfg", {})}
    names = ("timm_model_name", "image_size", "layers", "width", "patch_size")
    texts = ("hf_model_name", "context_length", "vocab_size", "layers", "width")
    return [config.get("embed_dim"), [vision[name] for name in names], [text[name] for name in texts]]


def architecture(config: Mapping[str, Any], library: Any) -> dict[str, Any]:
    """A model's config without activation, values that are the default, and those that weights replace."""
    left_out = ("quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias")
    found = {name: value for name, value in config.items() if name not in left_out}
    for part, kind in (("vision_cfg", library.CLIPVisionCfg), ("text_cfg", library.CLIPTextCfg)):
        usual = vars(kind())
        pretrained = ("timm_model_pretrained", "hf_model_pretrained", "patch_dropout")
        found[part] = {
            name: value
            for name, value in found.get(part, {}).items()
            if name not in pretrained and (name not in usual or value != usual[name])
        }
    return found
