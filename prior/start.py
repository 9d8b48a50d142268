"""Starting from another prior: what of it is taken over, and what a recipe may still choose."""

from __future__ import annotations

import hashlib
from typing import Any

from ..pipeline.errors import InputError, SettingsError
from ..pipeline.read import EmbeddingDataset
from ..pipeline.settings import Settings, parse_settings
from .checkpoint import prior_tensors
from .config import InitSettings, TrainSettings
from .load import load_prior
from .model import Prior

_OWN_CHOICE = {"loss", "loss_weighting", "text_drop", "image_drop", "attn_dropout", "ff_dropout"}
"""Of network and diffusion: how it is trained on, not what it computes."""


def load_start(init: InitSettings) -> Prior:
    """The prior to start from, on the CPU; errors as of `load_prior`."""
    return load_prior(init.path, config=init.config, weights=init.weights, function_version=init.function_version)


def starting_from(settings: TrainSettings, start: Prior) -> TrainSettings:
    """Settings with the network and the diffusion of a prior.

    Raises:
        SettingsError: the recipe names others.
    """
    values = settings.model_dump()
    for section in ("network", "diffusion"):
        values[section] = _merged(section, getattr(settings, section), getattr(start.config, section))
    return parse_settings(TrainSettings, values, f"train.init_from {values['init_from']['path']}")


def _merged(section: str, given: Settings, found: Settings) -> dict[str, Any]:
    merged = found.model_dump()
    for name in given.model_fields_set:
        value = getattr(given, name)
        if name in _OWN_CHOICE:
            merged[name] = value
        elif value != merged[name]:
            raise SettingsError(
                f"train.{section}.{name}={value}, but the prior to start from has {merged[name]}; leave it out"
            )
    return merged


def check_start(start: Prior, dataset: EmbeddingDataset, path: str) -> None:
    """InputError if a prior does not fit the embeddings that it is to be trained on."""
    config = start.config
    sizes = (config.embed_dim, config.text_dim or config.embed_dim)
    if sizes != (dataset.embed_dim, dataset.embed_dim):
        raise InputError(
            f"train.init_from {path}: predicts embeddings of {sizes[0]} from texts of {sizes[1]}; {dataset.store.url} "
            f"holds embeddings of {dataset.embed_dim}"
        )
    own, theirs = config.clip.get("weights_sha256"), dataset.clip_if_known.get("weights_sha256")
    if None not in (own, theirs) and own != theirs:
        raise InputError(
            f"train.init_from {path}: was trained with another CLIP than the one that made {dataset.store.url}"
        )


def start_fingerprint(start: Prior) -> str:
    """SHA-256 over the names and values of a prior's weights and statistics, wherever they were read from."""
    digest = hashlib.sha256()
    for name, value in sorted(prior_tensors(start.network, start.normaliser).items()):
        digest.update(f"{name} {list(value.shape)} {value.dtype}\0".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
