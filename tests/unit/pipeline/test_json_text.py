"""Each text that is not JSON is a ValueError, and no other module calls the standard parser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import priorkit
from priorkit.pipeline.json_text import parse_json

PACKAGES = [Path(priorkit.__file__).parent / name for name in ("pipeline", "prior", "recipes")]


def test_values_are_parsed() -> None:
    assert parse_json('{"caption": "猫", "n": [1, 2.5, null, true]}') == {"caption": "猫", "n": [1, 2.5, None, True]}
    assert parse_json("[1]".encode("utf-16")) == parse_json(bytearray(b"[1]")) == [1]


@pytest.mark.parametrize(
    "text", ["", "{", b"\xff", "[1] 2", "9" * 5000, "[" * 100_000, '{"a":' * 100_000, "[" * 5000 + "]" * 5000]
)
def test_anything_else_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


def test_a_syntax_error_gives_its_position() -> None:
    with pytest.raises(json.JSONDecodeError) as caught:
        parse_json("[1,]")
    assert caught.value.pos == 3


def test_no_other_module_calls_the_standard_parser() -> None:
    modules = [path for package in PACKAGES for path in package.rglob("*.py")]
    assert len(modules) > 100
    found = [path.name for path in modules if re.search(r"\bjson\.loads\(", path.read_text(encoding="utf-8"))]
    assert found == ["json_text.py"]
