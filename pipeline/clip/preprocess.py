"""Functions that choose the preprocessing and activation for CLIP weights that were stored without these values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import InputError

PREPROCESS_FIELDS = ("mean", "std", "interpolation", "resize_mode")
TRAINED_FIELDS = (*PREPROCESS_FIELDS, "quick_gelu")
"""Names of the preprocessing and activation settings, whose values must match those used in training.

A weight file does not record these values.
"""


def as_trained(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Extract the preprocessing and activation values from the config of an open_clip tag or model.

    The result has one value for each name in `TRAINED_FIELDS`. If the config lacks a value or the value is None, the
    value in `defaults` is used.
    """
    values = {name: defaults[name] if config.get(name) is None else config[name] for name in TRAINED_FIELDS}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def decide(
    given: Mapping[str, Any],
    stated: Mapping[str, Any],
    tags: Mapping[str, Mapping[str, Any]],
    defaults: Mapping[str, Any],
    wanted: str,
    architecture: str,
) -> dict[str, Any]:
    """Choose a preprocessing or activation value for each of the `TRAINED_FIELDS`.

    Each value is taken from the first source that has it: the settings, a config stored with the weights, or
    open_clip's pretrained tags for the same architecture. A value is taken from the tags only if it is the same for all
    of them.

    Args:
        given: values in the settings.
        stated: values in a config stored with the weights.
        tags: values that the weights of each tag of the architecture were trained with, keyed by tag.
        defaults: open_clip's defaults, used instead of the tags if the architecture has no tags.
        wanted: setting that specifies the weights, such as `embed.clip.model=NAME`, for error messages.
        architecture: name of the architecture, for error messages.

    Raises:
        InputError: a value is in neither the settings nor the config, and the tags have different values for it. The
            message lists the possible values.
    """
    chosen, open_fields = {}, []
    for name in TRAINED_FIELDS:
        values = [trained[name] for trained in tags.values()] or [defaults[name]]
        if name in given:
            chosen[name] = given[name]
        elif name in stated:
            chosen[name] = stated[name]
        elif all(value == values[0] for value in values):
            chosen[name] = values[0]
        else:
            open_fields.append(name)
    if open_fields:
        parts = " and ".join(
            text
            for text, fields in (("preprocessing", PREPROCESS_FIELDS), ("activation", ("quick_gelu",)))
            if set(fields) & set(open_fields)
        )
        raise InputError(
            f"{wanted}: the {parts} of these weights is not known, and the tags of {architecture} differ in it.\n"
            f"Put their open_clip_config.json beside them, or set embed.clip to {_choices(open_fields, tags)}"
        )
    return chosen


def _choices(fields: list[str], tags: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a string that lists the settings a user can choose from, for an error message.

    Each choice is a combination of values for `fields` that at least one tag uses, shown with the name of such a tag.
    """
    groups: dict[str, list[str]] = {}
    for tag, trained in tags.items():
        preprocess = {name: trained[name] for name in fields if name in PREPROCESS_FIELDS}
        setting = {"preprocess": preprocess} if preprocess else {}
        if "quick_gelu" in fields:
            setting["quick_gelu"] = trained["quick_gelu"]
        groups.setdefault(json.dumps(setting).replace('"', ""), []).append(tag)
    shown = [
        f"{setting} (as {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''})"
        for setting, names in groups.items()
    ]
    return ", or ".join(shown)
