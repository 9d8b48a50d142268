"""An inspection as rows of tables, for the terminal and for a page, and the page itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..display.page import new_plot, page, paragraph, plot_label, plots, table
from .findings import Inspection

_LISTED = 20
"""Messages of failures that a table shows."""
DISTRIBUTION_HEADER = ("distribution", "rows", "mean", "std", "min", "1%", "50%", "99%", "max")


def health(found: Inspection) -> str:
    """Sound, or how many problems there are."""
    return "sound" if not found.problem_count else f"{found.problem_count:,} problems"


def summary_rows(found: Inspection) -> list[tuple[str, Any]]:
    """Counts and sizes: name and value."""
    rows: list[tuple[str, Any]] = [("stage", found.stage), ("shards", f"{found.shards:,}")]
    rows += [("rows", f"{found.rows:,}"), ("bytes", f"{found.bytes:,}")]
    rows += [(f"  {outcome}", f"{number:,}") for outcome, number in sorted(found.counts.items())]
    return rows


def error_rows(found: Inspection) -> list[tuple[str, Any]]:
    """The most frequent messages of failures, with their counts."""
    ordered = sorted(found.errors.items(), key=lambda item: (-item[1], item[0]))
    rows = [(message, f"{number:,}") for message, number in ordered[:_LISTED]]
    if len(ordered) > _LISTED:
        rest = sum(number for _, number in ordered[_LISTED:])
        rows.append((f"{len(ordered) - _LISTED:,} other messages", f"{rest:,}"))
    return rows


def setting_rows(found: Inspection) -> list[tuple[str, Any]]:
    """What is known of the CLIP, and the settings, by dotted name."""
    return _flat({**found.about, **({"settings": found.settings} if found.settings else {})})


def looked_at_rows(found: Inspection) -> list[tuple[str, Any]]:
    """How much each check looked at."""
    return [(name, f"{number:,}") for name, number in found.looked_at.items()]


def distribution_rows(found: Inspection) -> list[tuple[str, ...]]:
    """A row of `DISTRIBUTION_HEADER` for each distribution."""
    return [
        (
            name,
            f"{values['rows']:,}",
            *(_number(values[column]) for column in ("mean", "std", "min")),
            *(_number(values["quantiles"][share]) for share in ("0.01", "0.5", "0.99")),
            _number(values["max"]),
        )
        for name, values in found.distributions.items()
    ]


def listed(findings: Sequence[str], count: int, most: int) -> list[str]:
    """The first findings, and how many there are besides."""
    shown = list(findings[:most])
    if count > len(shown):
        shown.append(f"and {count - len(shown):,} more")
    return shown


def inspection_page(found: Inspection) -> bytes:
    """A self-contained HTML page.

    Raises:
        InputError: matplotlib is not installed.
    """
    most = len(found.problems)
    sections = [
        ("Contents", [table(("", ""), summary_rows(found))]),
        ("Health", [
            paragraph(health(found)), *map(paragraph, listed(found.problems, found.problem_count, most)),
            *([table(("looked at", "number"), looked_at_rows(found))] if found.looked_at else []),
        ]),
    ]  # fmt: skip
    if found.notes:
        notes = listed(found.notes, found.note_count, len(found.notes))
        sections.append(("Notes", [paragraph(note) for note in notes]))
    drawn = [_histogram(name, values) for name, values in found.distributions.items()]
    outcomes = {name: number for name, number in found.counts.items() if number}
    if outcomes:
        drawn.append(_bars("outcomes", outcomes))
    if drawn:
        shown = table(DISTRIBUTION_HEADER, distribution_rows(found))
        sections.append(("Distributions", [plots(drawn), *([shown] if found.distributions else [])]))
    if found.errors:
        sections.append(("Failures", [table(("message", "rows"), error_rows(found))]))
    if rows := setting_rows(found):
        sections.append(("Settings", [table(("", ""), rows)]))
    return page(f"priorkit inspect {found.folder}", sections)


def _histogram(name: str, values: Mapping[str, Any]) -> str:
    edges, counts = values["histogram"]["edges"], values["histogram"]["counts"]
    with new_plot(f"{name} ({values['rows']:,})", name, "rows") as (axes, made):
        axes.stairs(counts, edges, fill=True)
        if edges[0] > 0 and edges[-1] > 100 * edges[0]:
            axes.set_xscale("log")
    return made[0]


def _bars(name: str, counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: item[1])[-_LISTED:]
    with new_plot(name, "rows", "", height=1.2 + 0.25 * len(ordered)) as (axes, made):
        axes.barh([plot_label(name) for name, _ in ordered], [number for _, number in ordered])
    return made[0]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 10 else f"{value:.4g}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested values as dotted names."""
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", value))
    return rows
