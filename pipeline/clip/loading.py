"""Loading of CLIP models from any source: open_clip's own models, and those of other packages.

Functions receive the open_clip module in the argument `library`, because only the module `encoder` imports it.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version

from ..errors import InputError, SettingsError
from ..explain import one_line
from .convert.load import LoadedClip, load_openai, load_state, load_transformers
from .convert.torchscript import is_torchscript, read_torchscript
from .convert.transformers_folder import TransformersPlan, download_repository, plan_transformers
from .errors import explain, silence_library_logs
from .identity import has_quick_gelu
from .names import HUB_PREFIX, OPENAI_PREFIX, TRANSFORMERS_PREFIX
from .plan import hub_config, plan_clip, trained_by_config
from .positions import require_positions
from .preprocess import PREPROCESS_FIELDS
from .settings import ClipSettings
from .source import ClipSource

_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""open_clip precision names, keyed by the name of the torch dtype."""


def check_source(settings: ClipSettings, source: ClipSource, library: Any) -> None:
    """Check that a CLIP model can be loaded, as far as its settings and local config files show.

    Models on the Hugging Face Hub are not checked.

    Args:
        settings: settings of the model.
        source: source of the weights, from `parse_source`.
        library: the open_clip module.

    Raises:
        InputError: the model cannot be loaded, or it cannot be determined how its weights are to be used.
        SettingsError: a setting cannot be applied to the model.
    """
    if source.kind == "transformers":
        if source.folder is not None:
            plan_transformers(settings, source.folder, library)
    elif source.kind != "openai":
        plan_clip(settings, source, library)


def load_clip(settings: ClipSettings, source: ClipSource, dtype: str, device: str, library: Any) -> LoadedClip:
    """Load a CLIP model.

    Args:
        settings: settings of the model.
        source: source of the weights, from `parse_source`.
        dtype, device: dtype and device of the model's weights.
        library: the open_clip module.

    Raises:
        InputError: the model or its weights are unavailable, or the weights do not fit the model.
        SettingsError: a setting has no effect on the model.
    """
    if source.kind in ("bundled", "folder") and Version(library.__version__).major < 3:
        raise InputError(
            f"embed.clip.model={settings.model}: folders need open_clip_torch 3 or newer, here is "
            f"{library.__version__}; give a model's name, and the path of its weights as pretrained"
        )
    try:
        with warnings.catch_warnings(), silence_library_logs():
            if source.kind == "transformers":
                plan = _plan_transformers(settings, source, library)
                loaded = load_transformers(plan, getattr(torch, dtype), device, library)
            elif source.kind == "openai":
                assert source.file is not None
                loaded = load_openai(settings, source.file, getattr(torch, dtype), device, library)
            else:
                loaded = _load_open_clip(settings, source, dtype, device, library)
    except (InputError, SettingsError):
        raise
    except Exception as error:  # open_clip lets any exception from torch, the hub or a parser propagate
        raise explain(settings, error) from error
    if settings.quick_gelu is not None and settings.quick_gelu != has_quick_gelu(loaded.model):
        raise SettingsError(
            f"embed.clip.quick_gelu={str(settings.quick_gelu).lower()} has no effect on {settings.model}; leave it out"
        )
    return loaded


def _plan_transformers(settings: ClipSettings, source: ClipSource, library: Any) -> TransformersPlan:
    """Return the plan for loading a model of transformers. The files of a hub model are downloaded first."""
    folder = source.folder or download_repository(settings.model.removeprefix(TRANSFORMERS_PREFIX))
    return plan_transformers(settings, folder, library)


def _load_open_clip(settings: ClipSettings, source: ClipSource, dtype: str, device: str, library: Any) -> LoadedClip:
    """Load a CLIP model with open_clip.

    If the weights are missing, raise an error. By default, open_clip would return a model with random weights instead.
    """
    plan = plan_clip(settings, source, library)
    trained = plan.trained
    if plan.name.startswith(HUB_PREFIX):
        stored = hub_config(plan.name.removeprefix(HUB_PREFIX), library)
        trained = trained_by_config(settings, stored, library)
    # embeddings are wrong if the activation is not the one that the weights were trained with
    if settings.quick_gelu is None:
        warnings.filterwarnings("error", message=".*QuickGELU mismatch.*")
    else:
        warnings.filterwarnings("ignore", message=".*QuickGELU mismatch.*")
    loads_file = plan.weights is not None
    weights = {"load_weights": False, "pretrained_text": False} if loads_file else {"require_pretrained": True}
    model, _, preprocess = library.create_model_and_transforms(
        plan.name, plan.pretrained, precision=_PRECISIONS[dtype], device=device,
        **weights, **_options(settings, trained),
    )  # fmt: skip
    if plan.weights is not None and is_torchscript(plan.weights):
        _load_archive(model, plan.weights, library)
    elif plan.weights is not None:
        library.load_checkpoint(model, str(plan.weights), strict=True)
    require_positions(model, plan, settings)
    config = library.get_model_config(plan.name)
    # with a tokenizer of transformers, open_clip would run code of the folder, or ask on the terminal whether to run it
    of_transformers = config["text_cfg"].get("hf_tokenizer_name")
    tokenizer = library.get_tokenizer(plan.name, **({"trust_remote_code": False} if of_transformers else {}))
    return LoadedClip(model.eval(), preprocess, tokenizer, config)


def _load_archive(model: torch.nn.Module, path: Path, library: Any) -> None:
    """Copy the weights of a TorchScript archive into a model.

    Raises:
        InputError: the weights do not fit the model.
    """
    try:
        load_state(model, read_torchscript(path), library, may_resize=True)
    except RuntimeError as error:
        raise InputError(
            f"{path}: a TorchScript archive of another architecture than the model's ({one_line(error, 200)}).\n"
            f"Name the model that it belongs to, or give --model {OPENAI_PREFIX}{path}, which finds the architecture"
        ) from None


def _options(settings: ClipSettings, trained: dict[str, Any]) -> dict[str, Any]:
    """Return keyword arguments for open_clip that set the preprocessing, activation and image size of a model.

    Args:
        settings: settings of the model; only the image size is used.
        trained: preprocessing and activation values to pass, keyed by name in `TRAINED_FIELDS`.
    """
    options = {f"image_{name}": trained[name] for name in PREPROCESS_FIELDS if name in trained}
    if settings.preprocess is not None and settings.preprocess.size is not None:
        options["force_image_size"] = settings.preprocess.size
    if "quick_gelu" in trained:
        options |= {"force_quick_gelu": True} if trained["quick_gelu"] else {"quick_gelu": False}
    return options
