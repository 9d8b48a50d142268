"""Functions that determine whether two CLIP models are the same.

Two CLIP models are the same if their weights, activation and preprocessing are equal, even if their names differ.
These values are recorded in a dictionary, the *identity* of a model.
"""

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
"""Keys in a CLIP model's identity whose values determine its embeddings, apart from rounding."""
_CONFIGS = ("architecture_sha256", "config_sha256")
"""Keys in a CLIP model's identity for the two hashes of its open_clip config.

The first hash covers only the architecture, without values that equal open_clip's defaults. The second hash covers the
config exactly as written.
Two configs count as equal if either hash matches.
"""
_ACTIVATION = "-quickgelu"
"""Suffix of open_clip model names that select OpenAI's activation, QuickGELU.

A tag refers to the same weights whether or not the model name has this suffix.
"""
Match = Literal["same", "other", "unknown"]


def clip_difference(known: Mapping[str, Any], other: Mapping[str, Any], *, strict: bool = False) -> str:
    """Return a description of the differences between two CLIP models, or an empty string if they are the same.

    By default, only the weights, activation, preprocessing and config are compared. A value that one of the identities
    lacks is not compared.

    Args:
        known: identity of the first model, as returned by `identify_clip`.
        other: identity of the second model.
        strict: True to compare all values in the identities except `source`. A value that only one identity contains
            then counts as a difference.
    """
    names = {*known, *other} - {"source", *_CONFIGS} if strict else {*known} & {*other} & {*_FUNCTION}
    before = {name: known[name] for name in names if name in known}
    after = {name: other[name] for name in names if name in other}
    configs = [name for name in _CONFIGS if name in known and name in other]
    if configs and all(known[name] != other[name] for name in configs):
        before[configs[-1]], after[configs[-1]] = known[configs[-1]], other[configs[-1]]
    return difference(before, after)


def is_same_clip(known: Mapping[str, Any], location: Mapping[str, Any], wanted: ClipSettings) -> bool:
    """Return True if the settings in `wanted` specify the CLIP model that an earlier run used, the *known model*.

    The first of these steps that applies decides the result:

    1. Models for which `clip_source` returns equal dictionaries are the same.
    2. If the weights of both models come from open_clip tags, and the settings override neither preprocessing nor
       activation, the model names and tags are compared. The suffix `-quickgelu` of the model name is ignored.
    3. If `known` contains a hash of the weights and the embedding sizes differ, the models are different.
    4. Otherwise, the model in `wanted` is loaded to compare its weights. The known model is also loaded if `known`
       contains no hash of its weights.

    Return False if a model cannot be loaded.

    Args:
        known: identity of the known model, from the manifest of the earlier run; empty if it was not recorded.
        location: settings of the known model, as returned by `clip_location`; empty if they were not recorded.
        wanted: settings of the model to compare with the known model.
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
    """Compare two CLIP models by the values recorded in manifests, without loading either model.

    The values that both identities contain are compared first. If they differ, or if they include a hash of the
    weights, they decide the result. Otherwise, the open_clip model names and tags are compared.

    Args:
        known, other: identities of the two models, as returned by `identify_clip`; either may be empty.
        location, other_location: settings of the two models, as returned by `clip_location`; either may be empty.

    Returns:
        "same", "other" (a different model), or "unknown" if the recorded values are not sufficient. For example, the
        result is "unknown" if no recorded values differ, one identity lacks a hash of the weights, and the weights of
        one model do not come from an open_clip tag.
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
    """Return a copy of a CLIP model's identity or settings from which the image preprocessing is removed.

    The copy is used to compare models by their text embeddings, which image preprocessing does not affect.

    Args:
        described: identity of the model, or its settings from `clip_location`.
    """
    return {
        name: text_parts(value) if name == "source" else value
        for name, value in described.items()
        if name != "preprocess"
    }


def _tag(source: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the open_clip model name and tag in a dictionary from `clip_source`.

    Both are normalised, so that different spellings of the same tag compare equal. Return None for weights from a
    folder, a file or the Hugging Face Hub, because these have no tag.
    """
    model, pretrained = source.get("model"), source.get("pretrained")
    if not model or not pretrained or ":" in model or "/" in pretrained or "\\" in pretrained:
        return None
    return model.replace("/", "-"), pretrained.lower().replace("-", "_")  # open_clip accepts both spellings


def _weights_name(tag: tuple[str, str] | None) -> tuple[str, str] | None:
    """Return a `(model, tag)` pair with the activation suffix removed from the model name.

    Pairs that differ only in this suffix refer to the same weights. Return None if `tag` is None.
    """
    return None if tag is None else (tag[0].removesuffix(_ACTIVATION), tag[1])


def _overrides(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the preprocessing and activation overrides of a model whose weights come from an open_clip tag.

    The result is empty if there are no overrides.

    Args:
        source: dictionary that `clip_source` or `clip_location` returned for the model.
    """
    return {name: value for name, value in source.items() if name not in ("model", "pretrained")}


def describe_function(model: Any, config: Mapping[str, Any], library: Any) -> dict[str, Any]:
    """Return the identity of a loaded CLIP model: the values that determine its embeddings, apart from rounding.

    The values are the activation, the image preprocessing, a hash of the weights, and two hashes of the config.

    Args:
        model: the loaded open_clip model.
        config: open_clip config of the model, without preprocessing.
        library: the open_clip module, passed in because only `encoder` imports it.
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
    """Return True if an open_clip model uses QuickGELU, OpenAI's approximation of GELU."""
    return any(type(module).__name__ == "QuickGELU" for module in model.modules())


def hash_weights(model: torch.nn.Module) -> str:
    """Return the SHA-256 of the names and float32 values of all weights.

    The hash does not depend on the format of the file that the weights were loaded from.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
