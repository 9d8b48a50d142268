"""Self-contained HTML pages with text, tables, pictures and plots. A page loads no other files and runs no scripts.

A *fragment* is a string of HTML that is safe to embed in a page. Most functions in this module escape their arguments
and return fragments. Plots are SVG images that follow the page's light or dark theme. They require matplotlib, which
`pip install "priorkit[report]"` installs.
"""

from __future__ import annotations

import base64
import contextlib
import html
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..contract.storage import Store, atomic_file
from ..errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#2f7de1", "#e2711d", "#2a9d5c", "#c2408f", "#8a6fd1", "#9a8200", "#5b7083")
"""Colours for lines and bars, distinguishable on white and on black."""
_INK = "#0a0b0c"
"""Placeholder colour for axes and text in a plot, replaced by the page's text colour."""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Content security policy of a page, which allows only inline styles and embedded images."""
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --faint: #5d6770; --line: #d9dee3; --ground: #fff; --panel: #f5f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --faint: #98a3ad; --line: #363d45; --ground: #14181c; --panel: #1d2329; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; color: var(--ink); background: var(--ground);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; }
a { color: inherit; } p, figcaption { color: var(--faint); margin: .4rem 0; } strong { color: var(--ink); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; overflow-wrap: normal; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .7rem; text-align: right; }
th { color: var(--faint); font-weight: 600; } th:first-child, td:first-child { text-align: left; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; flex: 1 1 26rem; min-width: 0; background: var(--panel); border-radius: .5rem; padding: .8rem; }
figure svg { width: 100%; height: auto; display: block; color: var(--ink); }
.card { flex: 1 1 26rem; min-width: 0; background: var(--panel); border-radius: .5rem; padding: .8rem; }
.card .strip { margin-top: .5rem; } .card .strip img { width: calc(20% - .32rem); height: auto; aspect-ratio: 1; }
h3 { font-size: 1rem; margin: 0 0 .4rem; }
.plots > * { max-width: 33rem; }
.strip { display: flex; flex-wrap: wrap; gap: .4rem; align-items: center; }
.strip img { width: 6rem; height: 6rem; object-fit: cover; border-radius: .3rem; }
.strip img.marked { outline: 3px solid #2a9d5c; }
.strip span { flex: 0 0 100%; color: var(--faint); font-size: .9rem; }
"""


def text(value: object) -> str:
    """Convert a value to a string, and return the string with HTML special characters escaped."""
    return html.escape(str(value))


def paragraph(value: object) -> str:
    """Return an HTML paragraph whose text is the escaped value."""
    return f"<p>{text(value)}</p>"


def link(url: str, label: str) -> str:
    """Return an HTML link, or only the escaped label if the URL is not an HTTP or HTTPS URL."""
    with contextlib.suppress(ValueError):
        if urlsplit(url).scheme in ("http", "https"):
            return f'<a href="{html.escape(url)}" rel="noreferrer noopener">{text(label)}</a>'
    return text(label)


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return an HTML table with escaped cell values. The table scrolls horizontally if it is wider than the page."""
    head = "".join(f"<th>{text(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def picture(data: bytes, kind: str, label: str, marked: bool = False) -> str:
    """Return an HTML `img` element with the image data embedded in it as a data URL.

    Args:
        data: bytes of the image file.
        kind: image format, such as `png` or `jpeg`.
        label: alternative text.
        marked: True to draw a green frame around the image.
    """
    encoded = base64.b64encode(data).decode()
    mark = ' class="marked"' if marked else ""
    return f'<img{mark} alt="{html.escape(label)}" src="data:image/{kind};base64,{encoded}">'


def strip(label: str, pictures: Iterable[str]) -> str:
    """Return an HTML element that shows pictures in a row, below a label. The row wraps if it is too wide.

    Args:
        label: text of the label.
        pictures: `img` elements, as returned by `picture`.
    """
    return f'<div class="strip"><span>{text(label)}</span>{"".join(pictures)}</div>'


def card(heading: str, fragments: Iterable[str]) -> str:
    """Return an HTML box that shows a heading, with other fragments below it.

    Cards can be passed to `plots`, which shows them side by side with plots.
    """
    return f'<article class="card"><h3>{text(heading)}</h3>{"".join(fragments)}</article>'


def plots(figures: Iterable[str]) -> str:
    """Return an HTML element that shows plots and cards side by side, wrapped into rows that fit the page width."""
    return f'<div class="plots">{"".join(figures)}</div>'


@contextlib.contextmanager
def new_plot(title: str, x: str, y: str, height: float = 3.2, width: float = 5.6) -> Iterator[tuple[Axes, list[str]]]:
    """Context manager for drawing one plot. It yields matplotlib axes to draw on, and an empty list.

    At the end of the `with` block, the plot is converted to an SVG fragment, which is appended to the list.

    Args:
        title: title of the plot.
        x: label of the horizontal axis.
        y: label of the vertical axis.
        height, width: size of the matplotlib figure in inches. The page scales the plot to the width of its column.
            The size therefore affects only the aspect ratio and the apparent size of the text, which is about 10 points
            before scaling.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
        from matplotlib.rcsetup import cycler
    except ImportError as error:
        raise InputError('plots need matplotlib, which is not installed: pip install "priorkit[report]"') from error
    colours = {f"{part}.color": _INK for part in ("text", "xtick", "ytick")}
    colours |= {"axes.edgecolor": _INK, "axes.labelcolor": _INK, "legend.labelcolor": _INK}
    style: Any = {
        **colours, "svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9.5, "font.family": "sans-serif",
        "axes.prop_cycle": cycler(color=list(COLOURS)), "axes.spines.top": False, "axes.spines.right": False,
        "legend.frameon": False, "axes.grid": True, "grid.alpha": 0.2, "grid.color": _INK, "axes.titlesize": 10.5,
    }  # fmt: skip
    fragments: list[str] = []
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot(xlabel=x, ylabel=y, title=title)
        yield axes, fragments
        fragments.append(_to_svg(figure, title))


def plot_label(name: str) -> str:
    """Convert a name to a label that matplotlib can draw: ASCII text of at most 60 characters.

    Non-ASCII characters are replaced by escapes such as `\\xe9`. Dollar signs are escaped, because matplotlib would
    read them as the start of a formula.
    """
    return name.encode("unicode_escape").decode().replace("$", r"\$")[:60]


def _to_svg(figure: Figure, title: str) -> str:
    """Convert a matplotlib figure to an HTML `figure` element that contains the plot as SVG.

    The output is reproducible: equal figures give identical SVG.

    Args:
        figure: figure to convert.
        title: description of the plot for screen readers.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return f'<figure role="img" aria-label="{html.escape(title)}">{svg}</figure>'


def page(title: str, sections: Sequence[tuple[str, Sequence[str]]]) -> bytes:
    """Return a complete HTML page in UTF-8.

    Args:
        title: title and main heading of the page.
        sections: heading and fragments of each section.
    """
    parts = "".join(f"<section><h2>{text(heading)}</h2>{''.join(body)}</section>" for heading, body in sections)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<style>{_STYLE}</style></head><body><h1>{text(title)}</h1>{parts}</body></html>\n"
    ).encode()


def page_target(option: str, path: str, folders: Iterable[str]) -> str:
    """Check that a page can be written to a path, and return the absolute path.

    Commands call this function before they start their work, so that no work is lost because of an invalid path.

    Args:
        option: name of the command-line option that contains the path, for error messages.
        path: path of the page.
        folders: data folders. The page must not be inside any of them, because every file there counts as data.

    Raises:
        InputError: the path is empty, is a folder or is inside one of the data folders; its parent folder does not
            exist; or matplotlib is not installed.
    """
    target = os.path.abspath(path)
    if not path or os.path.isdir(target):
        raise InputError(f"{option} {path!r} is no name of a file; name one, such as page.html")
    if not os.path.isdir(os.path.dirname(target)):
        raise InputError(f"{option} {path}: there is no folder {os.path.dirname(target)}; make it or name another file")
    for folder in folders:
        inside = Store(folder)
        if inside.is_local and os.path.realpath(target).startswith(os.path.realpath(inside.root) + os.sep):
            raise InputError(f"{option} {path} is inside {folder}, whose files are recorded; name a file outside")
    with new_plot("", "", ""):  # raises if matplotlib is missing
        pass
    return target


def write_page(target: str, content: bytes) -> None:
    """Write a page to a file atomically: a failed write leaves no partial file.

    Args:
        target: path, as returned by `page_target`.
        content: page, as returned by `page`.
    """
    with atomic_file(target, durable=False) as file:
        file.write(content)
