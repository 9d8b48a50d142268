"""Folders and hub repositories of transformers' CLIP and SigLIP models: their files, and the plan for loading them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...contract.manifest import fingerprint
from ...errors import InputError, SettingsError
from ..files import hash_files
from ..plan import trained_by_config
from ..preprocess import PREPROCESS_FIELDS
from ..settings import ClipSettings
from .transformers_config import Family, read_config
from .transformers_files import CONFIG_FILE, tokenizer_files, weight_files
from .transformers_processor import SIGLIP_PREPROCESS, read_preprocess, require_tokenizer

_PATTERNS = ("*.json", "*.txt", "*.model")
"""Files of a hub repository other than weights. Sub-folders hold other formats, such as ONNX."""


@dataclass(frozen=True)
class TransformersPlan:
    """Arguments for loading a model of transformers."""

    folder: Path
    """Folder with the files of the model."""
    family: Family
    config: dict[str, Any]
    """Config of the model in open_clip's form."""
    preprocess: dict[str, Any]
    """Image preprocessing: values `mean`, `std`, `interpolation`, `resize_mode` and, if images are cropped from a
    larger size, `resize_to`."""
    weights: list[Path]
    """Weight files."""
    may_resize: bool
    """True if the settings state the image size, so that position embeddings may be interpolated."""

    @property
    def has_tokenizer(self) -> bool:
        """True if the folder has a tokenizer, False if open_clip's is used."""
        return bool(tokenizer_files(self.folder))

    def processor_hash(self) -> str:
        """Return a hash of the preprocessing and the tokenizer, which differ in details from those of open_clip."""
        return fingerprint({"preprocess": self.preprocess, "tokenizer": hash_files(tokenizer_files(self.folder))})


def download_repository(repository: str) -> Path:
    """Return a local folder with the files of a hub repository, downloading those that the cache lacks.

    Raises:
        InputError: the package huggingface_hub is not installed.
        Exception: the hub cannot be reached, or has no such repository; the exceptions are those of huggingface_hub.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(
            f'hf_clip:{repository} needs packages that are not installed: pip install "priorkit[transformers]"'
        ) from None
    folder = Path(snapshot_download(repository, allow_patterns=[*_PATTERNS, "model*.safetensors"]))
    if not list(folder.glob("model*.safetensors")):
        folder = Path(snapshot_download(repository, allow_patterns=[*_PATTERNS, "pytorch_model*.bin"]))
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(
            f"hf_clip:{repository} holds no {CONFIG_FILE}, so it is no model of transformers; for a model of open_clip "
            f"write hf-hub:{repository}"
        )
    return folder


def plan_transformers(settings: ClipSettings, folder: Path, library: Any) -> TransformersPlan:
    """Determine how to load a folder of transformers, without reading the weights.

    Args:
        settings: settings of the model, which may replace the activation and the preprocessing.
        folder: folder with the files of the model.
        library: the open_clip module.

    Raises:
        InputError: a file is missing or damaged, or states values that priorkit does not support.
        SettingsError: a setting cannot be applied to the model.
    """
    family, config = read_config(folder)
    require_tokenizer(folder, family, config["text_cfg"]["vocab_size"])
    vision, text = config["vision_cfg"], config["text_cfg"]
    preprocess = _preprocess(settings, folder, family, config, library)
    size = None if settings.preprocess is None else settings.preprocess.size
    if family == "siglip" and (settings.quick_gelu or size not in (None, vision["image_size"])):
        name = "quick_gelu=true" if settings.quick_gelu else f"preprocess.size={size}"
        raise SettingsError(f"embed.clip.{name} has no effect on the SigLIP in {folder}; leave it out")
    if size is not None:
        vision["image_size"] = size
    if settings.quick_gelu is not None and family == "clip":
        config["quick_gelu"] = settings.quick_gelu
        if settings.quick_gelu:
            vision.pop("act_kwargs", None)
            text.pop("act_kwargs", None)
    may_resize = size is not None and family == "clip"
    return TransformersPlan(folder, family, config, preprocess, weight_files(folder), may_resize)


def _preprocess(
    settings: ClipSettings, folder: Path, family: Family, config: dict[str, Any], library: Any
) -> dict[str, Any]:
    """Return the image preprocessing: the settings, and for values that are not set those that the folder states.

    A folder may state none. SigLIP models all have the same preprocessing; that of a CLIP is decided as for weights of
    open_clip.
    """
    given = settings.overrides().get("preprocess", {})
    stored = read_preprocess(folder, family, config["vision_cfg"]["image_size"])
    if stored is None and family == "siglip":
        stored = dict(SIGLIP_PREPROCESS)
    if stored is None and not all(name in given for name in PREPROCESS_FIELDS):
        try:
            trained = trained_by_config(settings, {"model_cfg": config}, library)
        except InputError as error:
            choices = str(error).partition("or set ")[2]
            raise InputError(
                f"{folder} holds no preprocessor_config.json, and models of this architecture differ in their "
                f"preprocessing.\nCopy that file from where the model was published, or set {choices}"
            ) from None
        stored = {name: trained[name] for name in PREPROCESS_FIELDS}
    preprocess = {**(stored or {}), **{name: value for name, value in given.items() if name != "size"}}
    if "size" in given or "resize_mode" in given:
        preprocess.pop("resize_to", None)
    return preprocess
