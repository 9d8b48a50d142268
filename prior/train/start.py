"""Initial weights of a training run: random weights, or the weights of an existing prior (`init_from`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...pipeline.clip.identity import clip_difference, is_same_clip
from ...pipeline.clip.settings import ClipSettings
from ...pipeline.clip.source import clip_location
from ...pipeline.errors import InputError, SettingsError
from ...pipeline.read.dataset import EmbeddingDataset
from ...pipeline.settings import Settings, parse_settings
from ..interchange.load import load_prior
from ..model.config import NormStatistics, PriorConfig
from ..model.prior import Prior
from ..network.family import FamilySettings
from ..network.lora import find_targets, is_adapter_weight
from .settings import InitSettings, TrainSettings
from .step import Learner

_NORMALISER_ROWS = 100_000
"""Maximum number of training rows used to compute normaliser statistics. More rows would hardly change the result."""
_FREE_FIELDS = {"loss", "loss_weighting", "text_drop", "image_drop", "attn_dropout", "ff_dropout", "dropout"}
"""Network and diffusion settings for which a recipe may override the initial prior's values. These settings affect
training, but not the predictions that the network computes from given weights."""


def initialise(learner: Learner, settings: TrainSettings, dataset: EmbeddingDataset) -> None:
    """Set the initial weights and normaliser statistics of `learner` for a new training run.

    If `settings.init_from` is set, both are copied from the initial prior. Otherwise, the learner keeps its random
    weights. If its normaliser uses statistics, they are computed from training rows in `dataset`.
    """
    if settings.init_from is not None:
        start = load_start(settings.init_from)
        for network in (learner.network, learner.average):
            adapters = {name: value for name, value in network.state_dict().items() if is_adapter_weight(name)}
            network.load_state_dict({**start.network.state_dict(), **adapters})
        learner.normaliser.load_state_dict(start.normaliser.state_dict())
    elif settings.diffusion.normaliser != "sqrt_dim":
        rows = dataset.epoch_order("train", settings.seed, 0)[:_NORMALISER_ROWS]
        image_embed = dataset.embeds("img_emb", rows)
        if settings.diffusion.takes_raw_images:
            image_embed *= dataset.norms("img_emb")[rows][:, None]
        learner.normaliser.fit(torch.from_numpy(image_embed).to(settings.device))


def image_norm_statistics(dataset: EmbeddingDataset, notes: list[str]) -> NormStatistics | None:
    """Return the mean and spread of the norms of the training images' embeddings; None if the folder stores none.

    Args:
        notes: receives a note for the user if the stored norms cannot be read.
    """
    try:
        if not dataset.has_norms("img_emb"):
            return None
        norms = dataset.norms("img_emb")[dataset.rows("train")].astype(np.float64)
    except InputError as error:  # must not prevent a finished prior from being written
        notes.append(f"the prior does not know the norms of its training images, so it gives no raw samples: {error}")
        return None
    return NormStatistics(mean=float(norms.mean()), std=float(norms.std()))


def load_start(init: InitSettings) -> Prior:
    """Load the initial prior on the CPU. Raises the same errors as `load_prior`."""
    return load_prior(init.path, config=init.config, weights=init.weights, function_version=init.function_version)


def settings_of_start(settings: TrainSettings, start: Prior) -> TrainSettings:
    """Combine the training settings of a recipe with the network and diffusion settings of the initial prior.

    For settings in `_FREE_FIELDS`, a value in the recipe overrides the initial prior's value. All other network and
    diffusion settings keep the initial prior's values.

    Raises:
        SettingsError: the recipe sets a network or diffusion setting outside `_FREE_FIELDS` to a value that differs
            from the initial prior's value.
    """
    values = settings.model_dump()
    for section in ("network", "diffusion"):
        values[section] = _merged(section, getattr(settings, section), getattr(start.config, section))
    return parse_settings(TrainSettings, values, f"train.init_from {values['init_from']['path']}")


def _merged(section: str, recipe: Settings, start: Settings) -> dict[str, Any]:
    """Return the values of one section of settings, combined from the recipe and the initial prior.

    Values come from the initial prior, except for settings in `_FREE_FIELDS` that the recipe sets.

    Args:
        section: name of the section, `network` or `diffusion`, for error messages.
        recipe: settings in the recipe's section.
        start: settings in the initial prior's section.

    Raises:
        SettingsError: the recipe sets a setting outside `_FREE_FIELDS` to a value that differs from the initial prior's
            value, or a setting that the initial prior's network family lacks.
    """
    merged = start.model_dump()
    for name in sorted(recipe.model_fields_set, key=list(type(recipe).model_fields).index):  # `family` comes first
        value = getattr(recipe, name)
        if name not in merged:
            assert isinstance(start, FamilySettings)
            raise SettingsError(
                f"train.{section}.{name}: the prior to start from is a {start.family}, which has no such setting; "
                "leave it out"
            )
        if name in _FREE_FIELDS:
            merged[name] = value
        elif value != merged[name]:
            raise SettingsError(
                f"train.{section}.{name}={value}, but the prior to start from has {merged[name]}; leave it out"
            )
    return merged


def check_planned_start(
    settings: TrainSettings, clip: ClipSettings, identity: dict[str, Any], embeddings: str, *, stores_states: bool
) -> None:
    """Check that training can start from the initial prior, before the embeddings exist.

    Only a CLIP model with local files is loaded. The size of another one is checked if open_clip has its config.

    Args:
        settings: training settings with an initial prior.
        clip: CLIP model that will produce the embeddings.
        identity: identity of this model, if the embeddings folder already records it; otherwise empty.
        embeddings: embeddings folder, for error messages.
        stores_states: True if the embeddings will include token states.

    Raises:
        InputError: the initial prior is missing or damaged, or its embedding size or CLIP model differs.
        SettingsError: the recipe sets values that differ from those of the initial prior, or there will be no token
            states for it.
    """
    from ...pipeline.clip.encoder import clip_source, embedding_size, identify_clip  # takes seconds to import

    assert settings.init_from is not None
    path = settings.init_from.path
    start = load_start(settings.init_from)
    check_lora(settings, start)
    known, network = start.config, settings_of_start(settings, start).network
    if not identity:
        source = clip_source(clip)
        identity = {"source": source, **(identify_clip(clip) if "files" in source else {})}
    size = identity.get("embed_dim") or embedding_size(clip)
    sizes = {"embed_dim": size, "text_dim": None} if size is not None else {}
    described = {"clip": identity, "clip_settings": clip_location(clip), "spaces": None}
    check_start(start, f"{embeddings} (embed.clip)", path, known.model_copy(update={**sizes, **described}))
    if network.max_token_states and known.token_width is not None:
        require_states_condition(settings)
        if settings.text_condition != "online" and not stores_states:
            raise SettingsError(
                f"train.init_from {path}: this prior takes token states; set embed.token_states=true, so that they are "
                "stored, or train.text_condition=online"
            )


def check_lora(settings: TrainSettings, start: Prior) -> None:
    """Check that the initial prior has the layers that adapters are trained for.

    Raises:
        SettingsError: it lacks one.
    """
    try:
        if settings.lora is not None:
            find_targets(start.network, settings.lora.targets)
    except ValueError as error:
        raise SettingsError(f"train.lora.targets: {error}") from None


def require_states_condition(settings: TrainSettings) -> None:
    """Check that `text_condition` gives token states to an initial prior that takes them.

    Raises:
        SettingsError: `text_condition` is `pooled`.
    """
    if settings.text_condition == "pooled":
        raise SettingsError("train.text_condition=pooled: the prior to start from takes token states; leave it out")


def check_start(start: Prior, place: str, path: str, config: PriorConfig) -> None:
    """Check that the initial prior can be trained on the embeddings.

    CLIP models are compared by the hash of their weights, or by name if a hash is missing. They are not compared if the
    initial prior does not name its CLIP model.

    Args:
        start: the initial prior.
        place: embeddings folder, for error messages.
        path: path of the initial prior, for error messages.
        config: configuration of the new prior, which has the sizes of the embeddings and names the CLIP model that
            produced them.

    Raises:
        InputError: the embedding sizes or the CLIP models differ.
    """
    known = start.config
    sizes = (known.embed_dim, known.text_dim or known.embed_dim)
    text_dim = config.text_dim or config.embed_dim
    if sizes != (config.embed_dim, text_dim):
        raise InputError(
            f"train.init_from {path}: predicts embeddings of {sizes[0]} from texts of {sizes[1]}; {place} "
            f"holds embeddings of {_both(config.embed_dim, text_dim)}"
        )
    if known.spaces != config.spaces and not has_unknown_clip(known):
        raise InputError(
            f"train.init_from {path}: translates {_spaces_named(known)}; {place} holds "
            f"{_spaces_named(config)}; start from a prior of the same two spaces"
        )
    if known.spaces is not None or has_unknown_clip(known):
        return
    if "weights_sha256" in known.clip and "weights_sha256" in config.clip:
        if difference := clip_difference(known.clip, config.clip):
            raise InputError(
                f"train.init_from {path}: was trained with another CLIP than the one that made {place} ({difference})"
            )
    elif not _have_same_clip(known, config):
        names = [_clip_name(each) for each in (known, config)]
        raise InputError(
            f"train.init_from {path}: belongs to the CLIP {names[0]}, and {place} was made by {names[1]}; "
            "start from a prior of that CLIP. If the names mean the same weights, convert it with --clip as they are "
            "named here"
        )


def _both(target: int, source: int) -> str:
    """Return the sizes of the target and the source, for messages; one number if they are equal."""
    return str(target) if target == source else f"{target} and of {source} for texts"


def _spaces_named(config: PriorConfig) -> str:
    """Return the names of the source and the target of a prior, or of its CLIP, for messages."""
    if config.spaces is None:
        return f"text to images of the CLIP {_clip_name(config)}"
    names = [str(config.spaces.get(role, {}).get("name")) for role in ("source", "target")]
    models = {str(each.get("model")) for each in config.spaces.values()}
    return f"{names[0]} to {names[1]} of {', '.join(sorted(models))}"


def has_unknown_clip(config: PriorConfig) -> bool:
    """Return True if a prior's configuration does not name its CLIP model.

    This can happen if a DALLE2-pytorch checkpoint was converted without `--clip`.
    """
    return not config.clip and not config.clip_settings and config.spaces is None


def _have_same_clip(one: PriorConfig, other: PriorConfig) -> bool:
    """Return True if two priors use the same CLIP model.

    Call this only if at least one of the priors has no recorded hash of its CLIP model's weights. The CLIP models are
    compared by name. If the names are inconclusive, the models are loaded and compared. Return False if a model cannot
    be loaded.

    If `one` records the identity of its CLIP model (`clip`), this identity is compared with the model that
    `other.clip_settings` specifies. If `one` records no identity, the roles of the two priors are swapped. Return False
    if the `clip_settings` to compare with are empty.
    """
    identified, named = (one, other) if one.clip else (other, one)
    if not named.clip_settings:
        return False
    return is_same_clip(identified.clip, identified.clip_settings, ClipSettings(**named.clip_settings))


def _clip_name(config: PriorConfig) -> str:
    """Return the names of a prior's CLIP model and its pretrained weights, such as `ViT-B-32/openai`.

    If the configuration names no model, return `unknown`. The result is used in an error message.
    """
    source = config.clip_settings or config.clip.get("source", {})
    return f"{source.get('model', 'unknown')}{'/' if source.get('pretrained') else ''}{source.get('pretrained') or ''}"
