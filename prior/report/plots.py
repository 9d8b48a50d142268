"""The plots of a report: curves, intervals, histograms and scatters, as fragments of its page."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...pipeline.display.page import COLOURS, new_plot, plot_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 4.4
"""In inches: narrow, so that letters are readable on a phone."""
_POINTS = 500
"""Of a curve: more are averaged."""
_BINS = 40
_MARKERS = ("o", "^")

Interval = Mapping[str, float]
"""`value`, `low` and `high`."""


def curves(title: str, x: str, y: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Lines through points by name; positive values that span a factor of 10 on a logarithmic axis."""
    everything = [value for points in series.values() for _, value in points]
    with _plot(title, x, y) as (axes, made):
        for name, points in series.items():
            thinned = thin(np.asarray(points, np.float64))
            axes.plot(thinned[:, 0], thinned[:, 1], label=plot_label(name), marker="o" if len(thinned) == 1 else None)
        if len(series) > 1:
            axes.legend()
        if everything and min(everything) > 0 and max(everything) >= 10 * min(everything):
            axes.set_yscale("log")
    return made[0]


def thin(points: np.ndarray) -> np.ndarray:
    """Points `[N, 2]` as at most 500, each the mean of neighbours."""
    if len(points) <= _POINTS:
        return points
    return np.stack([part.mean(axis=0) for part in np.array_split(points, _POINTS)])


def intervals(title: str, x: str, values: Mapping[str, Interval]) -> str:
    """A value with its interval for each name, one below the other; those of what is evaluated stand out."""
    names = list(values)[::-1]
    with _plot(title, x, "", 1.0 + 0.24 * len(names)) as (axes, made):
        for position, name in enumerate(names):
            colour = COLOURS[0] if name.startswith(("prior", "given")) else COLOURS[6]
            _errorbar(axes, [values[name]], [position], colour, sideways=True)
        axes.set_yticks(range(len(names)), [plot_label(name) for name in names])
        axes.set_ylim(-0.6, len(names) - 0.4)
    return made[0]


def swept(title: str, x: str, y: str, values: Mapping[float, Interval]) -> str:
    """A value with its interval at each setting `x`, in ascending order; far spread ones on a logarithmic axis."""
    places = sorted(values)
    with _plot(title, x, y) as (axes, made):
        if places[0] > 0 and places[-1] >= 8 * places[0]:
            axes.set_xscale("log", base=2)
        axes.plot(places, [values[place]["value"] for place in places], color=COLOURS[0])
        _errorbar(axes, [values[place] for place in places], places, COLOURS[0])
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.minorticks_off()
    return made[0]


def losses_by_timestep(title: str, losses: Mapping[str, Mapping[str, Interval]]) -> str:
    """Losses of parts of the timesteps, named `first-last`, a line for each set of weights."""
    with _plot(title, "timestep (noise grows to the right)", "loss") as (axes, made):
        for number, (weights, found) in enumerate(losses.items()):
            parts = [name for name in found if name != "overall"]
            middles = [np.mean([int(edge) for edge in name.split("-")]).item() for name in parts]
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(middles, [found[name]["value"] for name in parts], color=colour, label=plot_label(weights))
            _errorbar(axes, [found[name] for name in parts], middles, colour)
        axes.legend()
        axes.set_ylim(bottom=0)
    return made[0]


def histograms(title: str, x: str, values: Mapping[str, np.ndarray]) -> str:
    """Outlines of the distributions of values `[N]` by name, over the same bins."""
    every = np.concatenate(list(values.values()))
    low, high = float(every.min()), float(every.max())
    edges = np.linspace(low, high if high > low else low + 1e-3, _BINS + 1)
    with _plot(title, x, "rows") as (axes, made):
        for number, (name, found) in enumerate(values.items()):
            colour = COLOURS[number % len(COLOURS)]
            counts = np.histogram(found, edges)[0]
            axes.stairs(counts, edges, color=colour, linewidth=1.5, label=plot_label(name))
            axes.stairs(counts, edges, color=colour, fill=True, alpha=0.15)
        axes.set_ylim(top=1.0 + axes.get_ylim()[1] * 1.25)  # room for the legend
        axes.legend(loc="upper left", fontsize=8.5)
    return made[0]


def scatter(title: str, axis_names: tuple[str, str], limits: np.ndarray, points: Mapping[str, np.ndarray]) -> str:
    """Points `[N, 2]` by name.

    Args:
        limits: `[2, 2]`: least and greatest value of each axis, the same for plots to be compared.
    """
    with _plot(title, *axis_names, 3.8) as (axes, made):
        for number, (name, found) in enumerate(points.items()):
            axes.plot(
                found[:, 0], found[:, 1], linestyle="none", marker=_MARKERS[number % len(_MARKERS)], markersize=3,
                markeredgewidth=0, alpha=0.75, color=COLOURS[number % len(COLOURS)], label=plot_label(name),
            )  # fmt: skip
        margin = 0.04 * (limits[1] - limits[0] + 1e-9)
        axes.set_xlim(limits[0, 0] - margin[0], limits[1, 0] + margin[0])
        axes.set_ylim(limits[0, 1] - margin[1], limits[1, 1] + margin[1])
        axes.figure.legend(loc="outside lower center", ncols=2, markerscale=2)
    return made[0]


def _plot(title: str, x: str, y: str, height: float = 2.9) -> contextlib.AbstractContextManager[tuple[Axes, list[str]]]:
    return new_plot(plot_label(title), x, y, height, _WIDTH)


def _errorbar(
    axes: Axes, values: Sequence[Interval], places: Sequence[float], colour: str, sideways: bool = False
) -> None:
    middle = [value["value"] for value in values]
    # a bootstrap's interval may leave out the value itself by a rounding
    reach = [[max(0.0, v["value"] - v["low"]) for v in values], [max(0.0, v["high"] - v["value"]) for v in values]]
    style: dict[str, Any] = {"fmt": "o", "markersize": 4, "capsize": 2.5, "linewidth": 1.3, "color": colour}
    if sideways:
        axes.errorbar(middle, places, xerr=reach, **style)
    else:
        axes.errorbar(places, middle, yerr=reach, **style)
