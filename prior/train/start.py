"""Starting from another prior: what of it is taken over, and what a recipe may still choose."""

from __future__ import annotations

import hashlib
from typing import Any

from ...pipeline.clip.identity import clip_difference, is_same_clip
from ...pipeline.clip.settings import ClipSettings
from ...pipeline.errors import InputError, SettingsError
from ...pipeline.read.dataset import EmbeddingDataset
from ...pipeline.settings import Settings, parse_settings
from ..interchange.load import load_prior
from ..model.config import PriorConfig
from ..model.folder import prior_tensors
from ..model.prior import Prior
from .settings import InitSettings, TrainSettings

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


def check_start(start: Prior, dataset: EmbeddingDataset, path: str, config: PriorConfig) -> None:
    """Check that a prior fits the embeddings that it is to be trained on.

    Args:
        config: of the new prior; its CLIP is the one that made the embeddings.

    Raises:
        InputError: it is of another size, or of another CLIP by hashes or, where a hash is missing, by names.
    """
    known = start.config
    sizes = (known.embed_dim, known.text_dim or known.embed_dim)
    if sizes != (dataset.embed_dim, dataset.embed_dim):
        raise InputError(
            f"train.init_from {path}: predicts embeddings of {sizes[0]} from texts of {sizes[1]}; {dataset.store.url} "
            f"holds embeddings of {dataset.embed_dim}"
        )
    if has_unknown_clip(known):
        return
    if "weights_sha256" in known.clip and "weights_sha256" in config.clip:
        if differing := clip_difference(known.clip, config.clip):
            raise InputError(
                f"train.init_from {path}: was trained with another CLIP than the one that made {dataset.store.url} "
                f"({differing})"
            )
    elif not _have_same_clip(known, config):
        names = [_clip_name(each) for each in (known, config)]
        raise InputError(
            f"train.init_from {path}: belongs to the CLIP {names[0]}, and {dataset.store.url} was made by {names[1]}; "
            "start from a prior of that CLIP. If the names mean the same weights, convert it with --clip as they are "
            "named here"
        )


def has_unknown_clip(config: PriorConfig) -> bool:
    """Return whether nothing is known of a prior's CLIP, as after a conversion without `--clip`."""
    return not config.clip and not config.clip_settings


def _have_same_clip(one: PriorConfig, other: PriorConfig) -> bool:
    """Return whether two priors have one CLIP, where at least one of them knows it by name only."""
    known, named = (one, other) if one.clip else (other, one)
    if not named.clip_settings:
        return False
    return is_same_clip(known.clip, known.clip_settings, ClipSettings(**named.clip_settings))


def _clip_name(config: PriorConfig) -> str:
    place = config.clip_settings or config.clip.get("source", {})
    return f"{place.get('model', 'unknown')}{'/' if place.get('pretrained') else ''}{place.get('pretrained') or ''}"


def start_fingerprint(start: Prior) -> str:
    """SHA-256 over the names and values of a prior's weights and statistics, wherever they were read from."""
    digest = hashlib.sha256()
    for name, value in sorted(prior_tensors(start.network, start.normaliser).items()):
        digest.update(f"{name} {list(value.shape)} {value.dtype}\0".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
