"""HTML page of an inspection: self-contained, escaped, with a plot of every distribution."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from priorkit.cli import app
from priorkit.pipeline.inspect.findings import Inspection
from priorkit.pipeline.inspect.page import distribution_rows, inspection_page, listed
from priorkit.pipeline.inspect.statistics import cosines, lengths

HOSTILE = '<script>alert(1)</script> $\\frac{$ & "x" \x1b[31m http://evil.example/x'


@pytest.fixture
def found() -> Inspection:
    cosine, length = cosines(), lengths()
    cosine.add(np.random.default_rng(0).uniform(-0.2, 0.5, 500))
    length.add(np.random.default_rng(0).integers(1, 900, 500))
    found = Inspection(f"/data/{HOSTILE}", "embed", 3, 500, 123_456)
    found.counts, found.errors = {"success": 500, HOSTILE: 7}, {HOSTILE: 7}
    found.about, found.settings = {"clip": {"model": HOSTILE}}, {"batch_size": 8}
    found.distributions = {"cosine": cosine.to_json(), "caption length": length.to_json()}
    for number in range(1200):
        found.add_problem(f"shard {number}: {HOSTILE}")
    found.add_note(HOSTILE)
    return found


class Elements(HTMLParser):
    """Elements and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def test_the_page_loads_nothing_and_runs_nothing(found: Inspection) -> None:
    text = inspection_page(found).decode()
    elements = Elements(text)
    assert not {"script", "link", "iframe", "object", "embed", "img", "form", "base"} & set(elements.tags)
    assert elements.tags.count("svg") == 3
    names = [(name, value) for name, value in elements.attributes if name in ("href", "xlink:href", "src", "action")]
    assert all(value.startswith("#") for _, value in names)
    assert not [name for name, _ in elements.attributes if name.startswith("on")]
    assert not re.search(r"url\((?!#)", text)
    assert "default-src 'none'" in text
    assert HOSTILE not in text
    assert "1,200 problems" in text
    assert "and 200 more" in text


def test_numbers_are_readable(found: Inspection) -> None:
    name, rows, mean, _, least, *_, most = distribution_rows(found)[1]
    assert (name, rows) == ("caption length", "500")
    assert 400 < float(mean) < 500
    assert (int(least), int(most)) == (1, 898) or int(most) > 800
    assert listed(["a", "b", "c"], 5, 2) == ["a", "b", "and 3 more"]
    assert listed(["a"], 1, 2) == ["a"]


def test_an_empty_inspection_has_a_page() -> None:
    text = inspection_page(Inspection("/data", "train", 0, 0, 0)).decode()
    assert "sound" in text
    assert Elements(text).tags.count("svg") == 0


def test_an_impossible_page_is_refused_before_the_inspection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for target, named in ((tmp_path, "is no name of a file"), (tmp_path / "none/page.html", "there is no folder")):
        result = CliRunner().invoke(app, ["inspect", "nothing/here", "--html", str(target)])
        assert result.exit_code == 1
        assert named in result.stderr.replace("\n", "")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = CliRunner().invoke(app, ["inspect", "nothing/here", "--html", str(tmp_path / "page.html")])
    assert 'pip install "priorkit[report]"' in result.stderr.replace("\n", " ")
    assert not (tmp_path / "page.html").exists()


def test_a_page_inside_the_inspected_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    for name in ("manifest.json", "page.html"):
        result = CliRunner().invoke(app, ["inspect", str(tmp_path), "--html", str(tmp_path / name)])
        assert result.exit_code == 1
        assert "whose files are recorded" in result.stderr.replace("\n", " ")
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    assert (tmp_path / "manifest.json").read_text() == "{}"
