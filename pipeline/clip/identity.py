"""Comparison of CLIPs: the same weights, activation and preprocessing are one CLIP, whatever names them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import torch

from ..contract.commit import difference
from ..contract.manifest import fingerprint
from ..errors import InputError
from .plan import architecture
from .settings import ClipSettings

_FUNCTION = ("weights_sha256", "activation", "preprocess")
"""Parts of an identity that decide which embeddings a CLIP makes, up to rounding."""
_CONFIGS = ("architecture_sha256", "config_sha256")
"""Hashes of a config without its default values, and as it is written. Configs agree if either does."""
_ACTIVATION = "-quickgelu"
"""Ending of open_clip's names of models with the activation of OpenAI's; a tag's weights go by the name of either."""
Match = Literal["same", "other", "unknown"]


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
    """Return whether settings name a CLIP that is known by its identity or its place.

    Equal names and files decide, and two tags do. Otherwise the CLIP is loaded, and its weights decide; one that is not
    on this machine and cannot be fetched is another.

    Args:
        known: its identity, as a manifest holds it; empty where that is not known.
        location: where it was, as `clip_location` gives it; may be empty.
    """
    from .encoder import clip_source, embedding_size, identify_clip

    try:
        there = ClipSettings(**location) if location else None
        before = known.get("source") or (clip_source(there) if there is not None else {})
        after = clip_source(wanted)
        if before == after:
            return True
        tags = _tag(before), _tag(after)
        if None not in tags and not _overrides(before) and not _overrides(after):
            return _weights(tags[0]) == _weights(tags[1])
        if "weights_sha256" not in known:
            return there is not None and not clip_difference(identify_clip(there), identify_clip(wanted))
        size = embedding_size(wanted)
        if None not in (size, known.get("embed_dim")) and size != known["embed_dim"]:
            return False  # without fetching gigabytes to find that out
        return not clip_difference(known, identify_clip(wanted))
    except InputError:
        return False


def compare_clips(
    known: Mapping[str, Any], location: Mapping[str, Any], found: Mapping[str, Any], found_location: Mapping[str, Any]
) -> Match:
    """Compare two CLIPs by what is known of both; nothing is loaded.

    Hashes of weights decide where both are known, else models and tags in open_clip; weights from a path have no tag.

    Args:
        known, location: identity and place of one, as for `is_same_clip`; either may be empty.
        found, found_location: those of the other.
    """
    if clip_difference(known, found):
        return "other"
    if "weights_sha256" in known and "weights_sha256" in found:
        return "same"
    before, after = known.get("source") or location, found.get("source") or found_location
    tags = _tag(before), _tag(after)
    if None in tags:
        return "unknown"
    if _weights(tags[0]) != _weights(tags[1]):
        return "other"
    return "same" if (tags[0], _overrides(before)) == (tags[1], _overrides(after)) else "unknown"


def text_parts(described: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of an identity or place on which embeddings of texts depend: all but the preprocessing of images."""
    return {
        name: text_parts(value) if name == "source" else value
        for name, value in described.items()
        if name != "preprocess"
    }


def _tag(source: Mapping[str, Any]) -> tuple[str, str] | None:
    """Model and tag of open_clip that a source names, spelled in one way; None of a folder or file, or if not known."""
    model, pretrained = source.get("model"), source.get("pretrained")
    if not model or not pretrained or ":" in model or "/" in pretrained or "\\" in pretrained:
        return None
    return model.replace("/", "-"), pretrained.lower().replace("-", "_")  # open_clip takes either spelling


def _weights(tag: tuple[str, str] | None) -> tuple[str, str] | None:
    """A tag by one name for both activations, which share its weights."""
    return None if tag is None else (tag[0].removesuffix(_ACTIVATION), tag[1])


def _overrides(source: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a source that change the CLIP that it names."""
    return {name: value for name, value in source.items() if name not in ("model", "pretrained")}


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
    """Return whether a tower of open_clip's own has OpenAI's approximation of GELU."""
    return any(type(module).__name__ == "QuickGELU" for module in model.modules())


def hash_weights(model: torch.nn.Module) -> str:
    """SHA-256 over names and values of all weights as loaded, whatever the format of their file."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
