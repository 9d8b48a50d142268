"""Base class for settings, and conversion of recipe values to settings.

Each package defines its settings in its own `settings.py`.
"""

from __future__ import annotations

import copy
import os
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from .errors import InputError, SettingsError
from .nearest import suggest
from .yaml_text import PlainScalar, YamlMapping, read_yaml

SettingsType = TypeVar("SettingsType", bound="Settings")

UNKNOWN_CHOICE = "unknown_choice"
"""Type of the error for a value of a selector field that selects no class; see `Settings.selector`."""
_MAX_PROBLEMS = 3
"""Maximum number of problems that a message describes. Further problems are only counted."""
_MAX_KEYS = 8
"""Maximum number of known keys that a message lists if no known key is similar to the unknown key."""
_MAX_CHARACTERS = 60
"""Maximum number of characters of an invalid value that a message shows."""


class Settings(BaseModel):
    """Base class for settings. Instances are immutable and type-checked, and unknown keys are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    runtime_fields: ClassVar[frozenset[str]] = frozenset()
    """Names of the fields that affect where or how fast a stage runs, but never its output."""
    selector: ClassVar[str | None] = None
    """Name of the field that selects this class, for a setting that may have one of several classes."""
    later_fields: ClassVar[frozenset[str]] = frozenset()
    """Names of the fields that earlier versions lack.

    `identity` leaves them out while they have their default values, so that folders made before can be continued.
    """

    def identity(self) -> dict[str, Any]:
        """Return the settings that affect the output of a stage, as JSON values.

        All fields are included, except those in `runtime_fields`, and those in `later_fields` that have their default
        value.
        """
        fields = type(self).model_fields
        defaults = {name: fields[name].get_default(call_default_factory=True) for name in self.later_fields}
        unset = {name for name, default in defaults.items() if getattr(self, name) == default}
        dumped = self.model_dump(mode="json", exclude=unset | self.runtime_fields)
        for name in dumped:
            value = getattr(self, name)
            if isinstance(value, Settings):
                dumped[name] = value.identity()
        return dumped


_VARIABLE = re.compile(r"\$(?:\$|\{[^}]*\}?|[A-Za-z_][A-Za-z0-9_]*)")
_HOME = re.compile(r"^((?:local-dir:)?)~(?=/|$)")


def expand_location(location: str) -> str:
    """Replace a leading `~` with the home directory, `$NAME` and `${NAME}` with environment variables, `$$` with `$`.

    The `~` may also follow the prefix `local-dir:` of a CLIP model.

    Raises:
        ValueError: an environment variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        name = match[0].strip("${}")
        if name not in os.environ:
            raise ValueError(f"the environment has no variable {match[0]}; set it, or write $$ for a dollar sign")
        return os.environ[name]

    home = os.path.expanduser("~").replace("$", "$$")
    return _VARIABLE.sub(value, _HOME.sub(lambda match: match[1] + home, location))


def literal_location(location: str) -> str:
    """Escape a path or URL without a leading `~`, so that `expand_location` returns the original."""
    return location.replace("$", "$$")


Location = Annotated[str, AfterValidator(expand_location)]
"""Path or URL in which a leading `~`, `$NAME` and `${NAME}` are replaced; see `expand_location`."""


def parse_settings(
    cls: type[SettingsType], values: Mapping[str, Any], source: str, sections: Sequence[str] | None = None
) -> SettingsType:
    """Create settings of type `cls` from nested dictionaries, such as those that `with_overrides` returns.

    Args:
        cls: type of the settings.
        values: values of the settings, by section and name.
        source: name of the file or option that the values come from, for messages.
        sections: sections that the command reads; None if it reads all of them. Error messages suggest only keys in
            these sections.

    Raises:
        SettingsError: a key or value is invalid. The message names `source` and describes up to three problems. For an
            unknown key, it suggests the most similar known key.
    """
    try:
        typed = _typed([cls], values)
        return cls.model_validate(typed)
    except ValidationError as error:
        known = [path for path in _paths(cls, typed) if sections is None or path[0] in sections]
        described: dict[str, str] = {}
        for problem in error.errors():
            name, text = _describe(cls, problem, known, sections)
            described[name] = f"{described[name]}, or {text}" if name in described else f"{name}: {text}"
        shown = list(described.values())
        more = f"; and {len(shown) - _MAX_PROBLEMS:,} more" if len(shown) > _MAX_PROBLEMS else ""
        raise SettingsError(f"{source}: " + "; ".join(shown[:_MAX_PROBLEMS]) + more) from None
    except RecursionError:
        raise SettingsError(f"{source}: values are nested too deeply, or contain themselves") from None


def _kinds(annotation: Any) -> Iterator[Any]:
    """Yield the types that a type annotation allows: each member of a union, or else the annotated type itself.

    A Literal is yielded as a single type.
    """
    if get_origin(annotation) is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _kinds(part)
    else:
        yield annotation


def settings_kinds(annotation: Any) -> list[type[Settings]]:
    """Return the settings classes that a type annotation allows. There are several only if a `selector` tells them
    apart."""
    return _settings_among(list(_kinds(annotation)))


def _settings_among(kinds: Sequence[Any]) -> list[type[Settings]]:
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Settings)]


def _typed(kinds: Sequence[Any], value: Any) -> Any:
    """Return a copy of a value in which each unquoted YAML scalar is replaced by its parsed value or its text.

    The types that the scalar's field allows decide which of the two is used; see `_scalar`. Values of other types are
    not checked here. Sections whose keys are all commented out are removed, so that their settings get the default
    values.

    Args:
        kinds: types that the field allows for the value.
        value: value from YAML or from Python code; dictionaries and lists may be nested.
    """
    if isinstance(value, PlainScalar):
        return _scalar(kinds, value)
    if isinstance(value, list):
        items = next((get_args(kind)[:1] for kind in kinds if get_origin(kind) in (list, tuple, set, frozenset)), ())
        inner = [kind for item in items for kind in _kinds(item)]
        return [_typed(inner, item) for item in value]
    if not isinstance(value, dict):
        return value
    fields: dict[str, list[Any]] = {}
    for cls in _settings_among(kinds):
        for name, field in cls.model_fields.items():
            fields.setdefault(name, []).extend(_kinds(field.annotation))
    entries = next((get_args(kind)[1:] for kind in kinds if get_origin(kind) is dict), ())
    others = [kind for entry in entries for kind in _kinds(entry)]
    typed = {}
    for name, item in value.items():
        wanted = fields.get(name, others) if isinstance(name, str) else others
        left_empty = item is None and isinstance(value, YamlMapping) and _settings_among(wanted)
        if not left_empty or type(None) in wanted:
            typed[name] = _typed(wanted, item)
    return typed


def _scalar(kinds: Sequence[Any], scalar: PlainScalar) -> Any:
    """Return the parsed value or the text of an unquoted YAML scalar, depending on the types that its field allows.

    For example, for the scalar `no`, return the text `no` if the field allows this text as a choice, or False if the
    field is boolean. Return the parsed value if the field's types are unknown.

    Args:
        kinds: types that the field allows; empty if they are unknown.
        scalar: the unquoted scalar.
    """
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if scalar.text in choices:
        return scalar.text
    native = {bool: (bool,), int: (int, float), float: (int, float)}.get(type(scalar.value), ())
    if any(kind in native for kind in kinds) or scalar.value in choices:
        return scalar.value
    unwanted_boolean = isinstance(scalar.value, bool) and kinds  # pydantic would read `yes` as 1
    return scalar.text if str in kinds or choices or unwanted_boolean else scalar.value


def _paths(cls: type[Settings], values: Any, outer: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every setting and section of a settings class, as a tuple of names, outermost section first.

    Args:
        cls: settings class.
        values: values of these settings, which select one of several classes; see `Settings.selector`.
        outer: path of this section.
    """
    for name, field in cls.model_fields.items():
        yield (*outer, name)
        value = values.get(name) if isinstance(values, Mapping) else None
        for inner in _selected(settings_kinds(field.annotation), value):
            yield from _paths(inner, value, (*outer, name))


def _selected(members: Sequence[type[Settings]], values: Any) -> Sequence[type[Settings]]:
    """Return the class that the values of a section select among several, which is the first one by default.

    Return all classes if the selector field has an unknown value.
    """
    given = [cls for cls in members if isinstance(values, Mapping) and cls.selector in values]
    return [cls for cls in given if _selects(cls, values[cls.selector])] or given or members[:1]


def _describe(
    cls: type[Settings],
    problem: Mapping[str, Any],
    known: Sequence[tuple[str, ...]],
    sections: Sequence[str] | None,
) -> tuple[str, str]:
    """Return the name of the setting that a validation error is about, and a description of the error.

    Args:
        cls: type of the settings.
        problem: one of the errors of a pydantic ValidationError.
        known: paths of the keys that may be suggested.
        sections: sections that the command reads; None if it reads all of them.
    """
    path: list[str] = []
    owner: type[Settings] | None = cls
    members: list[type[Settings]] = []
    for part in problem["loc"]:
        if owner is not None and part in owner.model_fields:
            path.append(str(part))
            members = settings_kinds(owner.model_fields[part].annotation)
            owner = members[0] if members else None
        elif chosen := [member for member in members if _selects(member, part)]:
            owner = chosen[0]
        elif isinstance(part, int) or problem["type"] == "extra_forbidden" or owner is cls:
            path.append(str(part))  # other parts name a union member, which is meaningless to users
    name = _cut(".".join(path)) or "settings"
    if problem["type"] == "extra_forbidden":
        read_only = f"this command reads {', '.join(sections)} only" if sections and len(path) == 1 else ""
        owner = owner or cls
        if fault := _fault_of_other(path[-1], owner, members):
            known = [each for each in known if list(each[:-1]) == path[:-1]]
        return name, f"{fault or 'unknown key'}; {suggest(path, known) or read_only or _listed(owner)}"
    message = _cut(problem["msg"].removeprefix("Value error, "), 4 * _MAX_CHARACTERS)
    if problem["type"] == "model_type":
        message = "expected a section, that is keys with values"
    value = problem["input"]
    if problem["type"] == UNKNOWN_CHOICE and owner is not None and owner.selector is not None:
        name, value = f"{name}.{owner.selector}", value.get(owner.selector)
    value_is_known = problem["type"] in ("missing", "value_error") and not isinstance(value, str | int | float | bool)
    return name, message if value_is_known else f"{message} (got {_shown(value)})"


def _selects(member: type[Settings], value: Any) -> bool:
    """Return True if `value` of the selector field selects this class among several; see `Settings.selector`."""
    return member.selector is not None and member.model_fields[member.selector].default == value


def _fault_of_other(key: str, owner: type[Settings], members: Sequence[type[Settings]]) -> str:
    """Return a description of a key that `owner` lacks and another member has, or an empty string if none has it."""
    others = [cls for cls in members if cls is not owner and key in cls.model_fields]
    if owner not in members or not others or owner.selector is None:
        return ""
    here, there = (cls.model_fields[owner.selector].default for cls in (owner, others[0]))
    return f"a key of {owner.selector} {there}, not of {here}"


def _listed(owner: type[Settings]) -> str:
    known = sorted(owner.model_fields)
    if len(known) <= _MAX_KEYS:
        return f"known keys: {', '.join(known)}"
    return f"known keys: {', '.join(known[: _MAX_KEYS - 2])} and {len(known) - _MAX_KEYS + 2} more"


def _shown(value: Any) -> str:
    if isinstance(value, dict | list | tuple | set):
        kind = "a mapping" if isinstance(value, dict) else "a list"
        text = repr(value) if len(value) <= 4 else ""
        return text if 0 < len(text) <= _MAX_CHARACTERS else f"{kind} of {len(value):,}"
    return _cut(repr(value))


def _cut(text: str, limit: int = _MAX_CHARACTERS) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def with_overrides(
    values: Mapping[str, Any], overrides: Sequence[str], sections: Sequence[str] | None = None
) -> YamlMapping:
    """Apply overrides to a copy of settings, in the given order, and return the copy.

    If several overrides set the same setting, the last one takes effect. Missing sections are added.

    Args:
        values: settings as nested dictionaries, as read from a recipe. They are not modified.
        overrides: strings of the form `a.b=value`, in which the value is YAML.
        sections: sections that the command reads; None if it reads all of them.

    Raises:
        SettingsError: an override is malformed, or sets a section that the command does not read.
    """
    result = YamlMapping(copy.deepcopy(dict(values)))
    for override in overrides:
        shown = _cut(override, 2 * _MAX_CHARACTERS)
        name, separator, text = override.partition("=")
        *outer, last = (part.strip() for part in name.split("."))
        if not separator or not last or not all(outer):
            raise SettingsError(f"--set {shown}: expected KEY=VALUE, such as train.steps=1000")
        try:
            value = read_yaml(text)
        except InputError as error:
            raise SettingsError(f"--set {shown}: the value is {error}") from None
        first = [*outer, last][0]
        if sections is not None and first not in sections and (outer or first == "urls"):
            raise SettingsError(f"--set {shown}: this command reads {', '.join(sections)} only")
        section: dict[str, Any] = result
        for part in outer:
            if section.get(part) is None:
                section[part] = YamlMapping()
            section = section[part]
            if not isinstance(section, dict):
                raise SettingsError(f"--set {shown}: {part} is a value, it has no keys")
        section[last] = value
    return result
