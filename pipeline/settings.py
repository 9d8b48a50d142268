"""What settings are: frozen, typed, closed to unknown keys, with errors that name them. `config` has the sections."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import SettingsError

SettingsType = TypeVar("SettingsType", bound="Settings")


class Settings(BaseModel):
    """Base of all settings: frozen, typed, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    runtime_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields that change where or how fast the work is done, never its bytes."""

    def identity(self) -> dict[str, Any]:
        """The settings that change bytes, as plain JSON values."""
        dumped = self.model_dump(mode="json", exclude=set(self.runtime_fields))
        for name in dumped:
            value = getattr(self, name)
            if isinstance(value, Settings):
                dumped[name] = value.identity()
        return dumped


def parse_settings(cls: type[SettingsType], values: Mapping[str, Any], source: str) -> SettingsType:
    """Build settings of type `cls` from plain `values`.

    Raises:
        SettingsError: naming every bad key and value, `source`, and for an unknown key the nearest known one.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        problems = [_describe(cls, problem) for problem in error.errors()]
        raise SettingsError(f"{source}: " + "; ".join(problems)) from None


def _describe(cls: type[Settings], problem: Mapping[str, Any]) -> str:
    location = [str(part) for part in problem["loc"]]
    name = ".".join(location) or "settings"
    if problem["type"] != "extra_forbidden":
        shown = "" if problem["type"] == "missing" else f" (got {problem['input']!r})"
        return f"{name}: {problem['msg'].removeprefix('Value error, ')}{shown}"
    owner: type[Settings] = cls
    for part in location[:-1]:
        annotation = owner.model_fields[part].annotation
        nested = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        owner = next(kind for kind in nested if issubclass(kind, Settings))
    known = sorted(owner.model_fields)
    nearest = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys: {', '.join(known)}"
    return f"{name}: unknown key; {hint}"


RECIPE_SECTIONS = ("folders", "compute", "download", "embed", "read", "train", "evaluate")
"""Names of a recipe's sections, those of the prior included."""


def with_overrides(
    values: Mapping[str, Any], overrides: Sequence[str], sections: Sequence[str] | None = None
) -> dict[str, Any]:
    """Plain settings with `a.b=value` overrides put in, the value being YAML.

    Args:
        sections: the sections that the command reads; None for one that reads all.

    Raises:
        SettingsError: an override is not of that form, or sets what the command does not read.
    """
    result = copy.deepcopy(dict(values))
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator or not name.strip():
            raise SettingsError(f"--set {override}: expected KEY=VALUE, such as train.steps=1000")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise SettingsError(f"--set {override}: the value is not YAML ({error})") from error
        *outer, last = name.strip().split(".")
        if sections is not None and outer and outer[0] not in sections and outer[0] in RECIPE_SECTIONS:
            raise SettingsError(f"--set {override}: this command reads {', '.join(sections)} only")
        section = result
        for part in outer:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise SettingsError(f"--set {override}: {part} is a value, it has no keys")
        section[last] = value
    return result
