"""Strict YAML reader. Keys must be unique strings, merge keys (`<<`) are supported, and unquoted scalars keep their
text.

PyYAML's constructor reads `no` as False and `1e5` as text, expands aliases without limit, and accepts duplicate keys.
This module therefore uses only PyYAML's parser. The `settings` module converts each scalar to the type of its field.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from .errors import InputError

_TAG = "tag:yaml.org,2002:"
_SCALAR_TAGS = frozenset(f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "null", "timestamp", "value"))
_MERGE_TAG = f"{_TAG}merge"

_BOOLEANS = {**dict.fromkeys(("true", "yes", "on"), True), **dict.fromkeys(("false", "no", "off"), False)}
_NULLS = frozenset({"null", "~", ""})
_INTEGER = re.compile(r"[-+]?(0[xX][0-9a-fA-F_]+|0o[0-7_]+|0b[01_]+|[0-9][0-9_]*)")
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)([eE][-+]?[0-9]+)?")
_SPECIAL_FLOAT = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

_MAX_DEPTH = 50
"""Maximum nesting depth of a YAML document. Recipes use four levels."""
_MAX_NODES = 100_000
"""Maximum number of values after the expansion of aliases. Without a limit, nested aliases could exhaust memory."""


class YamlMapping(dict[str, Any]):
    """Dictionary read from YAML. A section's value is None, not an empty dictionary, if all its keys are commented
    out."""


@dataclass(frozen=True)
class PlainScalar:
    """Unquoted YAML scalar. It keeps both the text and the parsed value, because a scalar such as `no` may be meant as
    text or as a boolean."""

    text: str
    value: bool | int | float | str


def read_yaml(text: str | bytes) -> Any:
    """Parse one YAML document.

    Returns:
        A `YamlMapping` for a mapping, a list for a sequence, a string for a quoted scalar, and a `PlainScalar` for an
        unquoted scalar. Nested values have the same types. Null and an empty document become None.

    Raises:
        InputError: the text is not YAML, or uses a feature that this module rejects, such as duplicate keys. The
            message may give the line, but not the file; the caller must add the name of the file.
    """
    try:
        node = yaml.SafeLoader(_decode(text) if isinstance(text, bytes) else text.removeprefix("\ufeff"))
        root = node.get_single_node()
        return None if root is None else _Builder().build(root)
    except yaml.MarkedYAMLError as error:
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise InputError(f"not YAML ({_place(error.problem_mark or error.context_mark)}{problem})") from None
    except yaml.reader.ReaderError as error:
        raise InputError(f"not YAML (character {error.character!r} at position {error.position})") from None
    except yaml.YAMLError as error:
        raise InputError(f"not YAML ({error})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"not YAML (not UTF-8: byte {error.object[error.start]:#04x} at {error.start})") from None
    except RecursionError:
        raise InputError("not YAML that can be read (nested too deeply)") from None


def _plain_scalar(text: str) -> PlainScalar | None:
    """Parse an unquoted scalar as a boolean, number or text. Dates and times are text. Return None for null."""
    word = text.lower() if text in (text.lower(), text.upper(), text.capitalize()) else text
    if word in _NULLS:
        return None
    if word in _BOOLEANS:
        return PlainScalar(text, _BOOLEANS[word])
    digits = text.replace("_", "")
    try:
        if _INTEGER.fullmatch(text):
            return PlainScalar(text, int(digits, 0) if digits.lstrip("+-")[1:2].isalpha() else int(digits))
        if _FLOAT.fullmatch(text):
            return PlainScalar(text, float(digits))
    except ValueError:  # more digits than Python's int conversion limit
        return PlainScalar(text, text)
    if _SPECIAL_FLOAT.fullmatch(text):
        return PlainScalar(text, float(text.replace(".", "", 1)))
    return PlainScalar(text, text)


def _decode(data: bytes) -> str:
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if utf16 else "utf-8-sig")


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""


class _Builder:
    """Converter from the nodes that PyYAML parses to the Python values that `read_yaml` returns.

    It raises `yaml.MarkedYAMLError` if a document exceeds `_MAX_DEPTH` or `_MAX_NODES`, or uses a feature that this
    module rejects.
    """

    def __init__(self) -> None:
        self._nodes = 0
        self._open: list[yaml.Node] = []

    def build(self, node: yaml.Node) -> Any:
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            raise _problem(node, f"more than {_MAX_NODES:,} values, aliases expanded")
        if any(node is outer for outer in self._open):
            raise _problem(node, "an alias stands inside what it stands for")
        if len(self._open) >= _MAX_DEPTH:
            raise _problem(node, f"nested more than {_MAX_DEPTH} levels deep")
        self._open.append(node)
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
                return YamlMapping(self._items(node))
            if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
                return [self.build(item) for item in node.value]
            if isinstance(node, yaml.ScalarNode) and node.tag in (_SCALAR_TAGS | {_MERGE_TAG}):
                quoted = node.style is not None and node.tag == f"{_TAG}str"
                return node.value if quoted else _plain_scalar(node.value)
        finally:
            self._open.pop()
        raise _problem(node, f"the tag {node.tag.replace(_TAG, '!!')} is not supported; leave it out")

    def _items(self, node: yaml.MappingNode) -> Iterator[tuple[str, Any]]:
        """Yield the items of a mapping. Items from merge keys come first, so the mapping's own items override them."""
        local: dict[str, Any] = {}
        merged: list[yaml.Node] = []
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag == _MERGE_TAG:
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
                continue
            name = _key(key)
            if name in local:
                raise _problem(key, f"key {name!r} stands twice")
            local[name] = self.build(value)
        for source in reversed(merged):  # the first merged mapping takes precedence, so it comes last
            if not isinstance(source, yaml.MappingNode):
                raise _problem(source, "<< merges a mapping or a list of mappings, this is neither")
            yield from self.build(source).items()
        yield from local.items()


def _key(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return str(node.value)
    if isinstance(node, yaml.MappingNode):
        raise _problem(node, "unhashable key; quote text that holds {{ }}, or fill the template in first")
    raise _problem(node, "unhashable key; a key is text, this is a list")


def _problem(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, problem, node.start_mark)
