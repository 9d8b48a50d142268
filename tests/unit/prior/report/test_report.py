"""The parts of a report that need no evaluation: what is chosen, projected and drawn."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from priorkit.prior.report import plots as draw
from priorkit.prior.report.gallery import nearest
from priorkit.prior.report.gallery_section import find_rows, principal_axes, projection
from priorkit.prior.report.sections import sweep_values

HOSTILE = "</svg><script>alert(1)</script> $\\frac{$ \x1b"


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.2}


def way(name: str, weights: str = "ema", **changed: Any) -> dict[str, Any]:
    sample = {"sampler": "ddim", "steps": 16, "guidance_scale": 1.0, **changed}
    return {"name": name, "weights": weights, "sample": sample, "metrics": name}


def test_a_sweep_varies_one_setting_and_leaves_out_what_is_broken() -> None:
    predictors = [
        way("prior"), way("4 steps", steps=4), way("online", "online", steps=4), way("ddpm", sampler="ddpm"),
        way("guided", guidance_scale=2.0), {**way("64 steps", steps=64), "broken": "not finite"},
        {"name": "text embedding", "metrics": {}},
    ]  # fmt: skip
    assert sweep_values(predictors, "steps") == {16.0: "prior", 4.0: "4 steps"}
    assert sweep_values(predictors, "guidance_scale") == {1.0: "prior", 2.0: "guided"}


def test_rows_are_found_by_their_ids() -> None:
    known = np.array([9, 4, 2**64 - 1, 4, 7], np.uint64)
    by_id = np.argsort(known, kind="stable")
    wanted = np.array([7, 4, 5, 2**64 - 1, 0, 9], np.uint64)
    assert find_rows(known, by_id, wanted).tolist() == [4, 1, -1, 2, -1, 0]


def test_the_nearest_come_first_and_of_equals_the_first() -> None:
    images = np.array([[0, 1], [1, 0], [0.6, 0.8], [1, 0]], np.float32)
    assert nearest(np.array([[1.0, 0.0], [0.0, 1.0]]), images, 3).tolist() == [[1, 3, 2], [0, 2, 1]]


def test_principal_axes_are_those_of_the_covariance() -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal((300, 5)) * [1, 3, 0.5, 2, 0.1] @ np.linalg.qr(random.standard_normal((5, 5)))[0]
    mean, axes, shares = principal_axes(values)
    scales, vectors = np.linalg.eigh(np.cov(values.T))
    np.testing.assert_allclose(mean, values.mean(axis=0))
    np.testing.assert_allclose(shares, scales[::-1][:2] / scales.sum(), atol=1e-12)
    for axis, expected in zip(axes, vectors.T[::-1][:2], strict=True):
        assert abs(axis @ expected) == pytest.approx(1)
        assert axis[np.abs(axis).argmax()] > 0


def test_a_projection_has_the_axes_of_images_and_one_frame_for_all() -> None:
    image = np.random.default_rng(0).standard_normal((20, 4))
    assert "".join(projection(image, image + 1, None, "test")).count("<figure") == 1
    two, said = projection(image, image + 1, image - 1, "test")
    assert two.count("<figure") == 2
    assert "20 rows" in said
    # ticks are where the frame is: the frame is of all points, so both plots have the same
    ticks = [re.findall(r">([−\d.]+)</text>", part) for part in two.split("<figure")[1:]]
    assert ticks[0] == ticks[1]
    assert len(ticks[0]) > 4


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
    for kind, plot in drawn_with(HOSTILE).items():
        assert plot.startswith("<figure"), kind
        assert plot.count("<svg") == plot.count("</svg>") == 1, kind
        assert "<script" not in plot, kind
        assert len(re.findall(r"<path", plot)) > 8, kind
    assert drawn_with("prior") == drawn_with("prior")


def test_intervals_are_drawn_where_they_are() -> None:
    """The bar of a wider interval is longer, on the scale of the axis."""
    plot = draw.intervals(
        "Score", "x", {"a": {"value": 0, "low": -1, "high": 1}, "b": {"value": 0, "low": -2, "high": 2}}
    )
    bars = re.findall(r'id="LineCollection_\d+">\s*<path d="M ([\d.]+) [\d.]+ \s*L ([\d.]+)', plot)
    lengths = sorted(float(end) - float(start) for start, end in bars)
    assert len(lengths) == 2
    assert lengths[1] == pytest.approx(2 * lengths[0], rel=1e-4)
