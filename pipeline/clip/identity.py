"""CLIP identity and comparison: two names mean the same CLIP if weights, activation and preprocessing are equal."""

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
"""Parts of an identity that determine a CLIP's embeddings, up to rounding."""
_CONFIGS = ("architecture_sha256", "config_sha256")
"""Config hashes: without default values, and as written. Two configs count as equal if either hash matches."""
_ACTIVATION = "-quickgelu"
"""Suffix of open_clip models with OpenAI's activation, QuickGELU. A tag's weights are the same without the suffix."""
Match = Literal["same", "other", "unknown"]


def clip_difference(known: Mapping[str, Any], other: Mapping[str, Any], *, strict: bool = False) -> str:
    """Name the values in which two identities differ. An empty result means that they are the same CLIP.

    By default only weights, activation, preprocessing and config are compared, and only if both identities have them.

    Args:
        known: first identity.
        other: second identity.
        strict: True to compare all values except the source, including the dtype and values that only one identity has.
    """
    names = {*known, *other} - {"source", *_CONFIGS} if strict else {*known} & {*other} & {*_FUNCTION}
    before = {name: known[name] for name in names if name in known}
    after = {name: other[name] for name in names if name in other}
    configs = [name for name in _CONFIGS if name in known and name in other]
    if configs and all(known[name] != other[name] for name in configs):
        before[configs[-1]], after[configs[-1]] = known[configs[-1]], other[configs[-1]]
    return difference(before, after)


def is_same_clip(known: Mapping[str, Any], location: Mapping[str, Any], wanted: ClipSettings) -> bool:
    """Return whether settings name the CLIP with a known identity or location.

    Equal sources mean the same CLIP. If both sources are tags without overrides, the tags decide. Otherwise the CLIP in
    `wanted` is loaded to compare its weights. A CLIP that cannot be loaded counts as a different CLIP.

    Args:
        known: identity of the known CLIP, from a manifest; empty if unknown.
        location: location of the known CLIP, from `clip_location`; may be empty.
        wanted: settings of the CLIP to compare.
    """
    from .encoder import clip_source, embedding_size, identify_clip

    try:
        located = ClipSettings(**location) if location else None
        before = known.get("source") or (clip_source(located) if located is not None else {})
        after = clip_source(wanted)
        if before == after:
            return True
        tags = _tag(before), _tag(after)
        if None not in tags and not _overrides(before) and not _overrides(after):
            return _weights_name(tags[0]) == _weights_name(tags[1])
        if "weights_sha256" not in known:
            return located is not None and not clip_difference(identify_clip(located), identify_clip(wanted))
        size = embedding_size(wanted)
        if None not in (size, known.get("embed_dim")) and size != known["embed_dim"]:
            return False  # decided without downloading gigabytes of weights
        return not clip_difference(known, identify_clip(wanted))
    except InputError:
        return False


def compare_clips(
    known: Mapping[str, Any], location: Mapping[str, Any], other: Mapping[str, Any], other_location: Mapping[str, Any]
) -> Match:
    """Compare two CLIPs by their recorded identities and locations, without loading either.

    If both identities include a hash of the weights, the identities are compared. Otherwise, the open_clip models and
    tags are compared. Weights given by path have no tag, so without hashes the result is "unknown".

    Args:
        known, location: identity and location of the first CLIP, as for `is_same_clip`; either may be empty.
        other, other_location: identity and location of the second CLIP.
    """
    if clip_difference(known, other):
        return "other"
    if "weights_sha256" in known and "weights_sha256" in other:
        return "same"
    before, after = known.get("source") or location, other.get("source") or other_location
    tags = _tag(before), _tag(after)
    if None in tags:
        return "unknown"
    if _weights_name(tags[0]) != _weights_name(tags[1]):
        return "other"
    return "same" if (tags[0], _overrides(before)) == (tags[1], _overrides(after)) else "unknown"


def text_parts(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of an identity or location that affect text embeddings: all except image preprocessing."""
    return {
        name: text_parts(value) if name == "source" else value
        for name, value in described.items()
        if name != "preprocess"
    }


def _tag(source: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the normalised open_clip model and tag that a source names; None for a folder, file or hub model."""
    model, pretrained = source.get("model"), source.get("pretrained")
    if not model or not pretrained or ":" in model or "/" in pretrained or "\\" in pretrained:
        return None
    return model.replace("/", "-"), pretrained.lower().replace("-", "_")  # open_clip accepts either spelling


def _weights_name(tag: tuple[str, str] | None) -> tuple[str, str] | None:
    """Return a model and tag without the activation suffix, since models with either activation share the weights."""
    return None if tag is None else (tag[0].removesuffix(_ACTIVATION), tag[1])


def _overrides(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values in a source that modify the CLIP it names."""
    return {name: value for name, value in source.items() if name not in ("model", "pretrained")}


def describe_function(model: Any, config: Mapping[str, Any], library: Any) -> dict[str, Any]:
    """Return the parts of a loaded CLIP's identity that determine its embeddings, up to rounding.

    Args:
        model: the loaded open_clip model.
        config: the model's config without preprocessing.
        library: the open_clip module, which only `encoder` imports.
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
    """Return whether a model built by open_clip uses QuickGELU, OpenAI's approximation of GELU."""
    return any(type(module).__name__ == "QuickGELU" for module in model.modules())


def hash_weights(model: torch.nn.Module) -> str:
    """Return the SHA-256 of the names and float32 values of all weights. It does not depend on the file format."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
