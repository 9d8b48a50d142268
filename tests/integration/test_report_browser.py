"""The page of a report in a real browser, Debian's chromium: what it draws, what it says, and that nothing leaves."""

from __future__ import annotations

import functools
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ..conftest import QuietHandler, serving
from .browser import DESKTOP, PHONE, Browser
from .conftest import Finished

pytestmark = pytest.mark.browser

LOOK = """(() => {
  const boxes = [...document.querySelectorAll('figure svg')].map(svg => svg.getBBox());
  const images = [...document.images];
  return {
    figures: document.querySelectorAll('figure').length,
    drawn: boxes.filter(box => box.width > 50 && box.height > 50).length,
    paths: Math.min(...[...document.querySelectorAll('figure svg')].map(svg => svg.querySelectorAll('path').length)),
    images: images.length,
    loaded: images.filter(image => image.complete && image.naturalWidth > 0).length,
    page_width: document.documentElement.scrollWidth,
    ground: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.querySelector('figure svg text')).fill,
    letters: Math.min(...[...document.querySelectorAll('figure svg text')].map(
      text => parseFloat(getComputedStyle(text).fontSize)
        * Math.hypot(text.getScreenCTM().a, text.getScreenCTM().b))),
    height: document.documentElement.scrollHeight,
  };
})()"""


@pytest.fixture(scope="module")
def report(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small run, with a sweep, by the real command."""
    folder = tmp_path_factory.mktemp("report")
    sweep = ["--set", "evaluate.sweep.steps=[2,4,8]", "--set", "evaluate.sweep.guidance_scales=[1,2]"]
    common = ["--set", "evaluate.draws=2", "--set", "evaluate.sample.steps=4", "--set", "evaluate.splits=[test]"]
    finished.workspace.run("evaluate", "--evaluation", str(folder / "swept"), *common, *sweep)
    finished.workspace.run("report", str(folder / "swept"), "--output", str(folder / "report.html"))
    return folder / "report.html"


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_is_drawn_and_nothing_leaves(browser: Browser, report: Path, width: int, scheme: str) -> None:
    seen = browser.visit(report.as_uri(), LOOK, width, scheme)
    assert seen.errors == []
    assert [url for url in seen.requests if not url.startswith(("file:", "data:"))] == []
    look = seen.look
    assert look["figures"] == look["drawn"] == report.read_text().count("<figure")
    assert look["figures"] >= 14
    assert look["paths"] > 10
    assert look["images"] == look["loaded"] > 100
    assert look["page_width"] <= width  # what is wider scrolls by itself
    assert look["letters"] >= 8.5  # pixels of the smallest letters in a plot
    assert look["ground"] == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 28)")
    assert look["ink"] == ("rgb(29, 35, 41)" if scheme == "light" else "rgb(228, 232, 236)")
    pixels = np.asarray(Image.open(io.BytesIO(seen.screenshot)).convert("L"))
    assert (pixels[:100].mean() > 128) == (scheme == "light")
    assert pixels.std() > 20


class _Handler(QuietHandler):
    def __init__(self, asked: list[str], *arguments: Any) -> None:
        self._asked = asked
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self._asked.append(self.path)
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()


def test_a_page_that_would_ask_or_run_is_held_back_and_noticed(browser: Browser, report: Path, tmp_path: Path) -> None:
    """The policy holds against what escaping would have missed, and the checks above can fail."""
    asked: list[str] = []
    with serving(functools.partial(_Handler, asked)) as base:
        hostile = (
            f'<img src="{base}/image.png"><script src="{base}/script.js"></script>'
            f'<script>fetch("{base}/fetched")</script><link rel="stylesheet" href="{base}/style.css">'
            f'<iframe src="{base}/frame"></iframe><div style="background:url({base}/background)">x</div></body>'
        )
        whole = report.read_text()
        (tmp_path / "hostile.html").write_text(whole.replace("</body>", hostile))
        seen = browser.visit((tmp_path / "hostile.html").as_uri(), LOOK)
        assert asked == []
        assert len([error for error in seen.errors if "Content Security Policy" in error]) >= 5
        policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
        (tmp_path / "open.html").write_text(policy.sub("", whole).replace("</body>", hostile))
        seen = browser.visit((tmp_path / "open.html").as_uri(), LOOK)
        assert {"/image.png", "/script.js", "/fetched", "/style.css", "/frame", "/background"} <= set(asked)
        assert seen.errors
        assert [url for url in seen.requests if url.startswith(base)]
