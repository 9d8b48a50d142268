"""Plots: every kind is drawn, names are text, and values are where the axis says."""

from __future__ import annotations

import re

import numpy as np
import pytest

from priorkit.prior.report import plots as draw

HOSTILE = "</svg><script>alert(1)</script> $\\frac{$ \x1b"


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.2}


def test_long_curves_are_thinned_to_means() -> None:
    points = np.stack([np.arange(10_000.0), np.arange(10_000.0) ** 2], axis=1)
    thinned = draw.thin(points)
    assert thinned.shape == (500, 2)
    np.testing.assert_allclose(thinned[0], points[:20].mean(axis=0))
    assert draw.thin(points[:500]) is not points
    np.testing.assert_array_equal(draw.thin(points[:500]), points[:500])
    assert len(draw.curves("Loss", "step", "loss", {"training": points.tolist()})) < 60_000


def drawn_with(name: str) -> dict[str, str]:
    """Every kind of plot, with a name in it."""
    losses = {name: {"overall": interval(1), "0-49": interval(1), "50-99": interval(2)}}
    return {
        "curves": draw.curves(name, "step", "loss", {name: [(1, 2.0), (2, 30.0)], "other": [(2, 1.0)]}),
        "intervals": draw.intervals(name, "x", {name: interval(1), "prior": interval(2)}),
        "swept": draw.swept(name, "steps", "score", {4.0: interval(1), 64.0: interval(2)}),
        "losses": draw.losses_by_timestep(name, losses),
        "histograms": draw.histograms(name, "cosine", {name: np.ones(7), "other": np.ones(7)}),
        "scatter": draw.scatter(
            name, ("x", "y"), np.array([[0, 0], [1, 1]]), {name: np.eye(2), "other": np.zeros((1, 2))}
        ),
    }  # fmt: skip


def test_every_plot_is_drawn_and_takes_names_for_text() -> None:
    plots = drawn_with(HOSTILE)
    for kind, plot in plots.items():
        assert plot.startswith("<figure"), kind
        assert plot.count("<svg") == plot.count("</svg>") == 1, kind
        assert "<script" not in plot, kind
        assert len(re.findall(r"<path", plot)) > 8, kind
    assert drawn_with(HOSTILE) == plots


def test_intervals_are_drawn_where_they_are() -> None:
    """The bar of a wider interval is longer, on the scale of the axis."""
    plot = draw.intervals(
        "Score", "x", {"a": {"value": 0, "low": -1, "high": 1}, "b": {"value": 0, "low": -2, "high": 2}}
    )
    bars = re.findall(r'id="LineCollection_\d+">\s*<path d="M ([\d.]+) [\d.]+ \s*L ([\d.]+)', plot)
    lengths = sorted(float(end) - float(start) for start, end in bars)
    assert len(lengths) == 2
    assert lengths[1] == pytest.approx(2 * lengths[0], rel=1e-4)


def test_an_interval_beside_its_value_is_drawn_without_it() -> None:
    """Rounding may put the ends of a bootstrap interval on one side of the value; lengths are never below 0."""
    plot = draw.intervals("Score", "x", {"a": {"value": 1.0, "low": 1.1, "high": 2.0}})
    assert plot.startswith("<figure")


def ticks(plot: str) -> str:
    return " ".join(re.findall(r">([^<>]*)</text>", plot))


@pytest.mark.parametrize(("last", "is_logarithmic"), [(10.0, True), (9.0, False)])
def test_losses_that_span_a_factor_of_ten_are_logarithmic(last: float, is_logarithmic: bool) -> None:
    plot = draw.curves("Loss", "step", "loss", {"a": [(1, 1.0), (2, last)]})
    assert ("10⁰" in ticks(plot) or "tspan" in plot or "mathdefault" in plot) == is_logarithmic


def test_a_setting_is_drawn_in_ascending_order_at_its_own_values() -> None:
    plot = draw.swept("Score", "steps", "score", {64.0: interval(2), 4.0: interval(1), 16.0: interval(3)})
    shown = ticks(plot)
    assert [value for value in shown.split() if value in ("4", "16", "64")][:3] == ["4", "16", "64"]


def test_losses_are_drawn_by_bin_without_the_overall_one() -> None:
    bins = {"overall": interval(50), "0-9": interval(1), "10-29": interval(2)}
    plot = draw.losses_by_timestep("Loss", {"ema": bins})
    assert "50" not in ticks(plot).split()  # the overall loss would stretch the axis
    assert "20" in ticks(plot).split()  # the middle of the second bin
