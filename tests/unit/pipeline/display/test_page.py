"""Pages: values are escaped, and nothing is loaded or run."""

from __future__ import annotations

import sys
from html.parser import HTMLParser

import pytest

from priorkit.pipeline.display import page
from priorkit.pipeline.errors import InputError

HOSTILE = """</p><script>alert(1)</script><img src=x onerror=alert(1)>"' onload="alert(1)"""


class Tags(HTMLParser):
    """Tags of a page with their attributes, and its text."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(content.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def plot(title: str = "Losses") -> str:
    with page.new_plot(title, "step", "loss") as (axes, made):
        axes.plot([1, 2, 3], [3, 1, 2], label="training")
        axes.legend()
    return made[0]


def test_values_are_escaped_everywhere() -> None:
    body = [
        page.paragraph(HOSTILE),
        page.table([HOSTILE], [[HOSTILE], [1.5]]),
        page.link("https://example.com/?a=1&b=" + HOSTILE, HOSTILE),
        page.picture(b"\x89PNG", "png", HOSTILE),
        page.strip(HOSTILE, [page.picture(b"\x89PNG", "png", HOSTILE, marked=True)]),
        page.plots([plot(HOSTILE)]),
    ]
    found = Tags(page.page(HOSTILE, [(HOSTILE, body)]))
    names = {name for name, _ in found.tags}
    assert "script" not in names
    assert not [key for _, attributes in found.tags for key in attributes if key.startswith("on")]
    assert found.text.count("<script>alert(1)</script>") >= 8
    pictures = [attributes for name, attributes in found.tags if name == "img"]
    assert [attributes["alt"] for attributes in pictures] == [HOSTILE, HOSTILE]
    assert {attributes["src"] for attributes in pictures} == {"data:image/png;base64,iVBORw=="}


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "data:text/html,x", "//example.com", "file:///etc/passwd", "http://[", ""]
)
def test_only_http_and_https_become_links(url: str) -> None:
    assert page.link(url, "there") == "there"


def test_a_page_may_load_nothing() -> None:
    found = Tags(page.page("Report", [("Curves", [page.plots([plot()])])]))
    policy = next(
        a["content"] for n, a in found.tags if n == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "script" not in policy
    for name, attributes in found.tags:
        for key in ("src", "href", "xlink:href"):
            value = attributes.get(key)
            assert value is None or value.startswith(("#", "data:")), (name, key, value)


def test_plots_have_the_colour_of_the_text_and_are_reproducible() -> None:
    first = plot()
    assert first.count("currentColor") > 5
    assert "#0a0b0c" not in first
    assert "training" in first
    assert first == plot()


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"priorkit\[report\]"):
        plot()
