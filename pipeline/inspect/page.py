"""HTML page with the results of an inspection, and table rows that the page and the terminal output share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..display.page import new_plot, page, paragraph, plot_label, plots, table
from .findings import Inspection

_LISTED = 20
"""Maximum number of error messages listed in a table, and of bars in a bar chart."""
DISTRIBUTION_HEADER = ("distribution", "rows", "mean", "std", "min", "1%", "50%", "99%", "max")


def health(inspection: Inspection) -> str:
    """Return `sound` if the inspection found no problems, or else a string such as `3 problems`."""
    return "sound" if not inspection.problem_count else f"{inspection.problem_count:,} problems"


def summary_rows(inspection: Inspection) -> list[tuple[str, Any]]:
    """Return (name, value) table rows that summarise a folder.

    The values are the name of the stage, the numbers of shards, rows and bytes in the folder, and the number of rows
    with each outcome, such as `success`.
    """
    rows: list[tuple[str, Any]] = [("stage", inspection.stage), ("shards", f"{inspection.shards:,}")]
    rows += [("rows", f"{inspection.rows:,}"), ("bytes", f"{inspection.bytes:,}")]
    rows += [(f"  {outcome}", f"{number:,}") for outcome, number in sorted(inspection.counts.items())]
    return rows


def error_rows(inspection: Inspection) -> list[tuple[str, Any]]:
    """Return (message, count) table rows for the 20 most frequent error messages.

    If there are more messages, a final table row contains the total count of all others.
    """
    ordered = sorted(inspection.errors.items(), key=lambda item: (-item[1], item[0]))
    rows = [(message, f"{number:,}") for message, number in ordered[:_LISTED]]
    if len(ordered) > _LISTED:
        rest = sum(number for _, number in ordered[_LISTED:])
        rows.append((f"{len(ordered) - _LISTED:,} other messages", f"{rest:,}"))
    return rows


def setting_rows(inspection: Inspection) -> list[tuple[str, Any]]:
    """Return (name, value) rows for `Inspection.about` and `Inspection.settings`. Nested keys are joined with dots."""
    return _flat({**inspection.about, **({"settings": inspection.settings} if inspection.settings else {})})


def looked_at_rows(inspection: Inspection) -> list[tuple[str, Any]]:
    """Return one (description, count) table row for each check.

    The count is the number of rows, files or images that were checked.
    """
    return [(name, f"{number:,}") for name, number in inspection.looked_at.items()]


def distribution_rows(inspection: Inspection) -> list[tuple[str, ...]]:
    """Return one row for each distribution, with the columns of `DISTRIBUTION_HEADER`."""
    return [
        (
            name,
            f"{values['rows']:,}",
            *(_number(values[column]) for column in ("mean", "std", "min")),
            *(_number(values["quantiles"][share]) for share in ("0.01", "0.5", "0.99")),
            _number(values["max"]),
        )
        for name, values in inspection.distributions.items()
    ]


def listed(findings: Sequence[str], count: int, most: int) -> list[str]:
    """Return the first `most` findings, followed by a line with the number of omitted findings, if any.

    Args:
        findings: stored findings.
        count: total number of findings, stored or not.
        most: maximum number of findings to return.
    """
    shown = list(findings[:most])
    if count > len(shown):
        shown.append(f"and {count - len(shown):,} more")
    return shown


def inspection_page(inspection: Inspection) -> bytes:
    """Return a self-contained HTML page with the results of an inspection.

    Raises:
        InputError: the page needs plots, but matplotlib is not installed.
    """
    most = len(inspection.problems)
    sections = [
        ("Contents", [table(("", ""), summary_rows(inspection))]),
        ("Health", [
            paragraph(health(inspection)), *map(paragraph, listed(inspection.problems, inspection.problem_count, most)),
            *([table(("looked at", "number"), looked_at_rows(inspection))] if inspection.looked_at else []),
        ]),
    ]  # fmt: skip
    if inspection.notes:
        notes = listed(inspection.notes, inspection.note_count, len(inspection.notes))
        sections.append(("Notes", [paragraph(note) for note in notes]))
    figures = [_histogram(name, values) for name, values in inspection.distributions.items()]
    outcomes = {name: number for name, number in inspection.counts.items() if number}
    if outcomes:
        figures.append(_bars("outcomes", outcomes))
    if figures:
        shown = table(DISTRIBUTION_HEADER, distribution_rows(inspection))
        sections.append(("Distributions", [plots(figures), *([shown] if inspection.distributions else [])]))
    if inspection.errors:
        sections.append(("Failures", [table(("message", "rows"), error_rows(inspection))]))
    if rows := setting_rows(inspection):
        sections.append(("Settings", [table(("", ""), rows)]))
    return page(f"priorkit inspect {inspection.folder}", sections)


def _histogram(name: str, values: Mapping[str, Any]) -> str:
    """Return a histogram as an SVG fragment for the page.

    The horizontal axis is logarithmic if all values are positive and span more than a factor of 100.

    Args:
        name: name of the distribution.
        values: distribution in the format of `Distribution.to_json`.
    """
    edges, counts = values["histogram"]["edges"], values["histogram"]["counts"]
    with new_plot(f"{name} ({values['rows']:,})", name, "rows") as (axes, fragments):
        axes.stairs(counts, edges, fill=True)
        if edges[0] > 0 and edges[-1] > 100 * edges[0]:
            axes.set_xscale("log")
    return fragments[0]


def _bars(name: str, counts: Mapping[str, int]) -> str:
    """Return a bar chart of the 20 largest counts as an SVG fragment for the page."""
    ordered = sorted(counts.items(), key=lambda item: item[1])[-_LISTED:]
    with new_plot(name, "rows", "", height=1.2 + 0.25 * len(ordered)) as (axes, fragments):
        axes.barh([plot_label(name) for name, _ in ordered], [number for _, number in ordered])
    return fragments[0]


def _number(value: float) -> str:
    """Format a number with four significant digits, or in full if it is a whole number."""
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 10 else f"{value:.4g}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Convert nested mappings to a flat list of (dotted name, value) rows."""
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", value))
    return rows
