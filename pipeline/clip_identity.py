"""Comparison of CLIPs: the same weights, activation and preprocessing are one CLIP, whatever names them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from .clip_plan import architecture
from .config import ClipSettings
from .errors import InputError
from .shards import fingerprint
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

    Equal names and files decide, and two tags do. Otherwise the CLIP is loaded, and its weights decide; one that is not
    on this machine and cannot be fetched is another.

    Args:
        known: its identity, as a manifest holds it; empty where that is not known.
        location: where it was, as `clip_location` gives it; may be empty.
    """
    from .clip import clip_source, embedding_size, identify_clip

    try:
        there = ClipSettings(**location) if location else None
        before = known.get("source") or (clip_source(there) if there is not None else {})
        after = clip_source(wanted)
        if before == after:
            return True
        tags = _tag(before), _tag(after)
        if None not in tags:
            return tags[0] == tags[1]
        if "weights_sha256" not in known:
            return there is not None and not clip_difference(identify_clip(there), identify_clip(wanted))
        size = embedding_size(wanted)
        if None not in (size, known.get("embed_dim")) and size != known["embed_dim"]:
            return False  # without fetching gigabytes to find that out
        return not clip_difference(known, identify_clip(wanted))
    except InputError:
        return False


def is_named_otherwise(known: Mapping[str, Any], location: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether a CLIP without a known hash has another tag than one that is known; nothing is loaded.

    Args:
        known, location: as for `is_same_clip`.
        found: identity of the other; may be empty.
    """
    if "weights_sha256" in known and "weights_sha256" in found:
        return False
    tags = _tag(known.get("source") or location), _tag(found.get("source", {}))
    return None not in tags and tags[0] != tags[1]


def _tag(source: Mapping[str, Any]) -> tuple[str, str] | None:
    """Model and tag that a source names, the model by one name for both activations; None for other sources."""
    if set(source) != {"model", "pretrained"} or source["pretrained"] is None:
        return None
    if ":" in source["model"] or "/" in source["pretrained"]:
        return None  # a folder or file
    return source["model"].removesuffix("-quickgelu"), source["pretrained"]


def describe_function(model: Any, config: Mapping[str, Any], library: Any) -> dict[str, Any]:
    """The parts of a loaded CLIP's identity that decide which embeddings it makes, up to rounding.

    Args:
        config: its config without preprocessing.
        library: open_clip, which only `clip` imports.
    """
    preprocess = sorted(model.visual.preprocess_cfg.items())
    return {
        "weights_sha256": hash_weights(model),
        "config_sha256": fingerprint(config),
        "architecture_sha256": fingerprint(architecture(config, library)),
        "activation": "quick_gelu" if has_quick_gelu(model) else "gelu",
        "preprocess": {name: list(value) if isinstance(value, tuple) else value for name, value in preprocess},
    }


def has_quick_gelu(model: torch.nn.Module) -> bool:
    """Whether a tower of open_clip's own has OpenAI's approximation of GELU."""
    return any(type(module).__name__ == "QuickGELU" for module in model.modules())


def hash_weights(model: torch.nn.Module) -> str:
    """SHA-256 over names and values of all weights as loaded, whatever the format of their file."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
