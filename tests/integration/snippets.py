"""The fenced blocks of the documentation: what each is, and what it needs.

A block of `bash` or `python` is run, unless a comment on the line before it says what it needs:

    <!-- needs: cluster -->

which is one of `NEEDS`. Other languages are data, which is read, or `text`, which is nothing to run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEEDS = {
    "cluster": "several machines",
    "internet": "weights or packages from elsewhere",
    "checkout": "make, in a checkout, for minutes; `make` itself is what checks it",
    "minutes": "the whole demo, which tests/integration/test_demo.py runs",
    "time": "more than a moment, or Ray: run in processes of their own by a test that is marked slow",
}
DATA = ("yaml", "json", "text")

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\S*)\s*$")
_NEEDS = re.compile(r"^ *<!-- needs: (?P<word>\w+) -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: str
    line: int
    """Of the fence, from 1."""
    language: str
    needs: str | None
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a block of `bash`."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def pages() -> dict[str, Path]:
    """Every page that a reader meets, by name."""
    found = [ROOT / "README.md", ROOT / "recipes/demo/README.md", *sorted((ROOT / "docs/pages").glob("*.md"))]
    return {path.relative_to(ROOT).as_posix(): path for path in found}


def blocks_of(page: str, text: str) -> Iterator[Block]:
    """The blocks of a page, in order.

    Raises:
        ValueError: a block is indented in place of fenced, is of no known language, does not end, or says that it needs
            what is not known.
    """
    lines = text.splitlines()
    inside: tuple[int, str, str | None, int] | None = None
    body: list[str] = []
    for number, line in enumerate(lines, start=1):
        fence = _FENCE.match(line)
        if inside is not None:
            start, language, needs, indent = inside
            if fence is not None and not fence["language"]:
                yield Block(page, start, language, needs, "".join(f"{text}\n" for text in body))
                inside, body = None, []
            else:
                body.append(line[indent:])
            continue
        before = lines[number - 2] if number > 1 else ""
        if fence is not None:
            language = fence["language"]
            if language not in ("bash", "python", *DATA):
                raise ValueError(f"{page}:{number}: a block of {language or 'no language'}")
            said = _NEEDS.match(before)
            if said and said["word"] not in NEEDS:
                raise ValueError(f"{page}:{number}: needs {said['word']}; known are {', '.join(NEEDS)}")
            inside = number, language, said["word"] if said else None, len(fence["indent"])
        elif line.startswith("    ") and line.strip() and not before.strip():
            raise ValueError(f"{page}:{number}: an indented block; fence it and name its language")
    if inside is not None:
        raise ValueError(f"{page}:{inside[0]}: a block that does not end")
