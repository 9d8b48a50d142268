"""Sections: which metrics are tables and plots, and what replaces missing parts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from priorkit.prior.report.sections import Sections, _table, sweep_values
from priorkit.prior.report.source import ReportSource


def way(name: str, weights: str = "ema", **changed: Any) -> dict[str, Any]:
    sample = {"sampler": "ddim", "steps": 16, "guidance_scale": 1.0, **changed}
    return {"name": name, "weights": weights, "sample": sample, "metrics": name}


def test_a_sweep_varies_one_setting_and_omits_broken_predictors() -> None:
    predictors = [
        way("prior"), way("4 steps", steps=4), way("online", "online", steps=4), way("ddpm", sampler="ddpm"),
        way("guided", guidance_scale=2.0), {**way("64 steps", steps=64), "broken": "not finite"},
        {"name": "text embedding", "metrics": {}},
    ]  # fmt: skip
    assert sweep_values(predictors, "steps") == {16.0: "prior", 4.0: "4 steps"}
    assert sweep_values(predictors, "guidance_scale") == {1.0: "prior", 2.0: "guided"}


def test_a_table_has_a_row_for_each_predictor_and_leaves_unknown_cells_empty() -> None:
    value = {"value": 0.5, "low": 0.25, "high": 0.75}
    page = _table(
        {"prior": {"energy_score": value, "mmd": value}, "b<": {"energy_score": value}}, {"prior": 8, "b<": 1}
    )
    rows = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in page.split("<tr>")[1:]]
    cell = "0.5000 [0.2500,\u00a00.7500]"
    assert rows == [["", "draws", "energy score", "MMD"], ["prior", "8", cell, cell], ["b&lt;", "1", cell, ""]]
    assert "draws" not in _table({"prior": {"energy_score": value}})


@pytest.fixture(scope="module")
def built(given: Path) -> tuple[dict[str, str], list[str]]:
    """All sections of a report of given predictions by heading, and the sentences about missing parts."""
    sections = Sections(ReportSource(str(given)), str(given.parent / "images"))
    return {heading: "".join(body) for heading, body in sections.all_sections()}, sections.missing


def test_the_sections_are_in_the_order_of_the_page(built: tuple[dict[str, str], list[str]]) -> None:
    assert list(built[0]) == [
        "What was evaluated", "Training", "Metrics, test split", "Loss by timestep", "Steps and guidance",
        "Histograms of cosines", "Projection", "Captions and the images they find",
    ]  # fmt: skip


def test_the_subject_is_described_with_a_warning_about_training_rows(
    built: tuple[dict[str, str], list[str]], given: Path
) -> None:
    about = built[0]["What was evaluated"]
    for text in (str(given), "predictions", "rows of the test split</td><td>40", "draws for each caption</td><td>2"):
        assert text in about
    assert "On which rows it was trained is not known" in about


def test_every_predictor_is_in_the_tables_and_plots(built: tuple[dict[str, str], list[str]]) -> None:
    metrics = built[0]["Metrics, test split"]
    assert metrics.count("<figure") == 3  # distances need 48 rows
    for name in ("given predictions", "text embedding"):
        assert f"<td>{name}</td>" in metrics
    assert "40 rows, 95% intervals" in metrics


def test_missing_parts_are_sentences_on_the_page(built: tuple[dict[str, str], list[str]]) -> None:
    pages, missing = built
    for start in (
        "Predictions were given in place of a prior: there is no training",
        "Predictions were given in place of a prior: there is no loss",
        "Predictions were given: there is nothing to vary",
        "The test split has too few rows for distances",
    ):
        sentence = next(one for one in missing if one.startswith(start))
        assert any(sentence in page for page in pages.values())


def test_histograms_and_projection_are_drawn(built: tuple[dict[str, str], list[str]]) -> None:
    assert built[0]["Histograms of cosines"].count("<figure") == 2
    assert built[0]["Projection"].count("<figure") == 2
    assert built[0]["Captions and the images they find"].count("<article") == 12
    assert "nearest by the prediction" in built[0]["Captions and the images they find"]
