"""Comparison of CLIPs: the same weights, activation and preprocessing are one CLIP, whatever names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .config import ClipSettings
from .errors import InputError
from .stage_folder import difference

_FUNCTION = ("weights_sha256", "activation", "preprocess")
"""Parts of an identity that decide which embeddings a CLIP makes, up to rounding."""
_CONFIGS = ("architecture_sha256", "config_sha256")
"""Hashes of a config without its default values, and as it is written. Configs agree if either does."""


def clip_difference(known: Mapping[str, Any], found: Mapping[str, Any], *, strict: bool = False) -> str:
    """Name the values in which the identities of two CLIPs differ, among those that both have; empty for one CLIP.

    Args:
        strict: compare all values, such as the dtype, except where the CLIP comes from.
    """
    names = {*known, *found} - {"source", *_CONFIGS} if strict else {*known} & {*found} & {*_FUNCTION}
    before = {name: known[name] for name in names if name in known}
    after = {name: found[name] for name in names if name in found}
    configs = [name for name in _CONFIGS if name in known and name in found]
    if configs and all(known[name] != found[name] for name in configs):
        before[configs[-1]], after[configs[-1]] = known[configs[-1]], found[configs[-1]]
    return difference(before, after)


def is_same_clip(known: Mapping[str, Any], location: Mapping[str, Any], wanted: ClipSettings) -> bool:
    """Whether settings name a CLIP that is known by its identity or its place.

    Names decide where they are equal or are two tags of one model. Otherwise the wanted CLIP is loaded, and its weights
    decide; where nothing but other names is known, or the wanted one is not on this machine, it is another CLIP.

    Args:
        known: its identity, as a manifest holds it; empty where that is not known.
        location: where it was, as `clip_location` gives it; may be empty.
    """
    from .clip import clip_source, identify_clip

    source = clip_source(wanted)
    if known.get("source") == source:
        return True
    if not known and location:
        other = ClipSettings(**location)
        return _names(other) == _names(wanted) or _same_weights(other, wanted)
    if "weights_sha256" not in known or _are_other_tags(known.get("source", {}), source):
        return False
    try:
        return not clip_difference(known, identify_clip(wanted))
    except InputError:
        return False


def _same_weights(one: ClipSettings, other: ClipSettings) -> bool:
    """Whether two CLIPs without a known identity are one; both are loaded, unless their tags differ."""
    from .clip import clip_source, identify_clip

    try:
        sources = clip_source(one), clip_source(other)
        return not _are_other_tags(*sources) and not clip_difference(identify_clip(one), identify_clip(other))
    except InputError:
        return False


def _names(settings: ClipSettings) -> tuple[str, str | None]:
    """Model and tag of a CLIP, by one name for both of an architecture's activations."""
    return settings.model.removesuffix("-quickgelu"), settings.pretrained


def _are_other_tags(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether sources name two tags of one model, which have other weights without a look at them."""
    tags = one.get("pretrained"), other.get("pretrained")
    return one.get("model") == other.get("model") and None not in tags and tags[0] != tags[1]
