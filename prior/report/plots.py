"""Plots for a report: curves, intervals, histograms and scatter plots, each as an SVG fragment of the page."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...pipeline.display.page import COLOURS, new_plot, plot_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 4.4
"""Plot width in inches; narrow, so that text remains readable on a phone."""
_POINTS = 500
"""Maximum number of points per curve. More points would only make the page larger."""
_BINS = 40
"""Number of histogram bins."""
_MARKERS = ("o", "^")
"""Marker shapes for the series of a scatter plot, used in turn."""

Interval = Mapping[str, float]
"""Value with its 95% confidence interval, as in `metrics.json`: `value`, `low` and `high`."""


def curves(title: str, x: str, y: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Return an SVG plot with a line for each series of (x, y) points.

    The y axis is logarithmic if all values are positive and the largest is at least 10 times the smallest.
    """
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
    """Reduce a curve of N (x, y) points, `[N, 2]`, to at most 500 points by averaging neighbouring points."""
    if len(points) <= _POINTS:
        return points
    return np.stack([part.mean(axis=0) for part in np.array_split(points, _POINTS)])


def intervals(title: str, x: str, values: Mapping[str, Interval]) -> str:
    """Return an SVG plot of values with 95% confidence intervals, one below the other, each labelled with its name.

    Values whose names start with `prior` or `given` (the evaluated prior or predictions) are drawn in one colour, and
    all others in a second colour.
    """
    names = list(values)[::-1]
    with _plot(title, x, "", 1.0 + 0.24 * len(names)) as (axes, made):
        for position, name in enumerate(names):
            colour = COLOURS[0] if name.startswith(("prior", "given")) else COLOURS[6]
            _errorbar(axes, [values[name]], [position], colour, sideways=True)
        axes.set_yticks(range(len(names)), [plot_label(name) for name in names])
        axes.set_ylim(-0.6, len(names) - 0.4)
    return made[0]


def swept(title: str, x: str, y: str, values: Mapping[float, Interval]) -> str:
    """Return an SVG plot of a metric, with its 95% confidence intervals, as a function of a sampling setting.

    The x axis is logarithmic if all setting values are positive and the largest is at least 8 times the smallest.

    Args:
        title: title of the plot.
        x: label of the x axis.
        y: label of the y axis.
        values: value of the metric with its confidence interval, keyed by the value of the setting; at least one entry.
    """
    settings = sorted(values)
    with _plot(title, x, y) as (axes, made):
        if settings[0] > 0 and settings[-1] >= 8 * settings[0]:
            axes.set_xscale("log", base=2)
        axes.plot(settings, [values[setting]["value"] for setting in settings], color=COLOURS[0])
        _errorbar(axes, [values[setting] for setting in settings], settings, COLOURS[0])
        axes.set_xticks(settings, [f"{setting:g}" for setting in settings])
        axes.minorticks_off()
    return made[0]


def losses_by_timestep(title: str, losses: Mapping[str, Mapping[str, Interval]]) -> str:
    """Return an SVG plot of the loss per timestep bin, with a line for each set of weights.

    Args:
        title: title of the plot.
        losses: losses, keyed by the name of the weights and then by the name of the timestep bin. Bin names have the
            form `first-last`, such as `0-99`. The entry `overall` is not plotted.
    """
    with _plot(title, "timestep (noise grows to the right)", "loss") as (axes, made):
        for number, (weights, bins) in enumerate(losses.items()):
            names = [name for name in bins if name != "overall"]
            middles = [np.mean([int(edge) for edge in name.split("-")]).item() for name in names]
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(middles, [bins[name]["value"] for name in names], color=colour, label=plot_label(weights))
            _errorbar(axes, [bins[name] for name in names], middles, colour)
        axes.legend()
        axes.set_ylim(bottom=0)
    return made[0]


def histograms(title: str, x: str, values: Mapping[str, np.ndarray]) -> str:
    """Return an SVG plot with a histogram of each series of values. All series use the same bins."""
    pooled = np.concatenate(list(values.values()))
    low, high = float(pooled.min()), float(pooled.max())
    edges = np.linspace(low, high if high > low else low + 1e-3, _BINS + 1)
    with _plot(title, x, "rows") as (axes, made):
        for number, (name, series) in enumerate(values.items()):
            colour = COLOURS[number % len(COLOURS)]
            counts = np.histogram(series, edges)[0]
            axes.stairs(counts, edges, color=colour, linewidth=1.5, label=plot_label(name))
            axes.stairs(counts, edges, color=colour, fill=True, alpha=0.15)
        axes.set_ylim(top=1.0 + axes.get_ylim()[1] * 1.25)  # room for the legend
        axes.legend(loc="upper left", fontsize=8.5)
    return made[0]


def scatter(title: str, axis_names: tuple[str, str], limits: np.ndarray, points: Mapping[str, np.ndarray]) -> str:
    """Return an SVG scatter plot of one or more series of points.

    Args:
        title: title of the plot.
        axis_names: labels of the x and y axes.
        limits: ends of the axes, `[2, 2]`: the lowest x and y, then the highest x and y. A small margin is added. Use
            the same limits for plots that will be compared.
        points: points of each series, keyed by series name: `[N, 2]`, the x and y of N points.
    """
    with _plot(title, *axis_names, 3.8) as (axes, made):
        for number, (name, series) in enumerate(points.items()):
            axes.plot(
                series[:, 0], series[:, 1], linestyle="none", marker=_MARKERS[number % len(_MARKERS)], markersize=3,
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
    axes: Axes, values: Sequence[Interval], positions: Sequence[float], colour: str, sideways: bool = False
) -> None:
    """Add values with error bars to `axes`.

    `positions` are coordinates on the x axis or, if `sideways` is True, on the y axis. The other axis shows the values.
    """
    middle = [value["value"] for value in values]
    # rounding can leave a value slightly outside its bootstrap interval
    lengths = [[max(0.0, v["value"] - v["low"]) for v in values], [max(0.0, v["high"] - v["value"]) for v in values]]
    style: dict[str, Any] = {"fmt": "o", "markersize": 4, "capsize": 2.5, "linewidth": 1.3, "color": colour}
    if sideways:
        axes.errorbar(middle, positions, xerr=lengths, **style)
    else:
        axes.errorbar(positions, middle, yerr=lengths, **style)
