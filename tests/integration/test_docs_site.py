"""The documentation as a site: built without a warning, and looked at in a real browser on a phone and on a desktop."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from priorkit.cli import app
from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.prior.network.families import FAMILIES

from ..conftest import QuietHandler, serving
from .browser import DESKTOP, PHONE, Browser
from .snippets import ROOT

LOOK = """({
  page_width: document.documentElement.scrollWidth,
  letters: parseFloat(getComputedStyle(document.querySelector('article p')).fontSize),
  ground: getComputedStyle(document.body).backgroundColor,
  broken: [...document.images].filter(image => !image.complete || !image.naturalWidth).map(image => image.src),
  widest_image: Math.max(0, ...[...document.querySelectorAll('article img')].map(image => image.clientWidth)),
})"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [
            sys.executable, "-m", "mkdocs", "build", "--strict",
            "--config-file", str(ROOT / "docs/mkdocs.yml"), "--site-dir", str(folder),
        ],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.findall("WARNING|ERROR|not included in the nav", done.stdout + done.stderr)
    return folder


def written(page: Path) -> str:
    """What a page says, without markup."""
    return re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))


def test_what_is_generated_is_complete(site: Path) -> None:
    commands = written(site / "command-line/index.html")
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        assert f"priorkit {name}" in commands
        assert all(flag in commands for parameter in command.params for flag in parameter.opts if flag.startswith("--"))
    settings = (site / "settings/index.html").read_text(encoding="utf-8")
    for cls in (DownloadSettings, *FAMILIES.values()):
        assert [name for name in cls.model_fields if f"<code>{name}</code>" not in settings] == []
    for family in FAMILIES:
        assert f"train.network: {{family: {family}}}" in settings
    python = written(site / "python-api/index.html")
    for word in ("load_prior", "read_embeddings", "EmbeddingDataset", "FolderError", "should_stop"):
        assert word in python


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    """No page names a script, style, font or image of another host."""
    loads = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
    found = [(page.name, tag) for page in site.rglob("*.html") for tag in loads.findall(page.read_text())]
    assert [tag for _, tag in found if 'rel="canonical"' not in tag] == []


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with serving(functools.partial(QuietHandler, directory=str(site))) as url:
        yield url


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(PHONE, "dark"), (DESKTOP, "light")])
def test_every_page_is_readable(browser: Browser, site: Path, address: str, width: int, scheme: str) -> None:
    pages = sorted(path.parent.relative_to(site).as_posix() for path in site.rglob("index.html"))
    assert len(pages) > 20
    visits = browser.visit_all([f"{address}/{page}/" for page in pages], LOOK, width, scheme)
    for page, seen in zip(pages, visits, strict=True):
        assert seen.errors == [], page
        assert [url for url in seen.requests if not url.startswith((address, "data:", "blob:"))] == [], page
        assert seen.look["page_width"] <= width, page  # wide tables and code scroll by themselves
        assert seen.look["widest_image"] <= width, page
        assert seen.look["broken"] == [], page
        assert seen.look["letters"] >= 14, page
        assert (seen.look["ground"] == "rgb(255, 255, 255)") == (scheme == "light"), page
