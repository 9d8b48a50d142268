"""The style of what people read: how docstrings begin, and how long the lines of documentation are."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPENINGS = {
    "as", "at", "but", "by", "from", "how", "in", "of", "on", "so", "that", "what", "whatever", "when", "where",
    "whether", "which", "while", "who", "whose", "why", "with",
}  # fmt: skip
"""Words that no docstring begins with: it is a noun phrase for a thing, or an imperative for an action."""
LONGEST = 120
"""Characters in a line of documentation; tables, addresses and code may be longer."""


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of the docstrings of modules, classes, functions and attributes."""
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", [])
        for number, child in enumerate(body if isinstance(body, list) else []):
            is_string = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            if not is_string or not isinstance(child.value.value, str):
                continue
            after_a_name = number > 0 and isinstance(body[number - 1], ast.Assign | ast.AnnAssign)
            if number == 0 or after_a_name:
                yield child.lineno, child.value.value


def banned_opening(text: str) -> bool:
    first = re.match(r"[A-Za-z']+", text.strip())
    return first is not None and first[0].lower() in OPENINGS


def long_lines(text: str) -> Iterator[tuple[int, int]]:
    """Number and length of each line of prose that is too long."""
    in_code = False
    for number, line in enumerate(text.splitlines(), start=1):
        in_code ^= line.lstrip().startswith("```")
        prose = re.sub(r"\]\([^)]*\)", "]", line)
        if not in_code and len(prose) > LONGEST and not line.lstrip().startswith(("|", ":::", "!", "[!")):
            yield number, len(prose)


SOURCES = [
    path for path in tracked("*.py") if path.relative_to(ROOT).parts[0] in ("pipeline", "prior", "recipes") or
    path.parent == ROOT
]  # fmt: skip


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_begin_with_a_noun_or_an_imperative(path: Path) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text.strip().splitlines()[0]}"
        for line, text in docstrings(path.read_text(encoding="utf-8"))
        if banned_opening(text)
    ]
    assert found == []


@pytest.mark.parametrize(
    "path",
    [path for path in tracked("*.md") if "benchmarks" not in path.parts],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_lines_of_documentation_are_short(path: Path) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {length} characters"
        for number, length in long_lines(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_the_checks_see_what_they_look_for() -> None:
    source = '"""Of a module."""\nONE = 1\n"""Whether one."""\ndef f():\n    """Return it."""\n    """What"""\n'
    assert [banned_opening(text) for _, text in docstrings(source)] == [True, True, False]
    assert list(long_lines(f"{'a' * 121}\n```\n{'a' * 121}\n```\n[a]({'a' * 121})\n| {'a' * 121}\n")) == [(1, 121)]
