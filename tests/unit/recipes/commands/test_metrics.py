"""The tables of metrics, and the refusal of broken predictions."""

from __future__ import annotations

from typing import Any

import pytest

from priorkit.pipeline.errors import InputError
from priorkit.recipes.commands.metrics import print_metrics, require_sound


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def metrics_of(**changes: Any) -> dict[str, Any]:
    """Return the metrics of one split with a prior; `changes` replace its entries."""
    names = ("energy_score", "cosine_to_image", "cosine_to_text", "recall_at_1", "recall_at_10")
    prior = {
        "name": "prior", "draws": 8,
        "metrics": {name: interval(0.1 * number) for number, name in enumerate(names, start=1)},
        "distances": {"energy_distance": interval(0.7)},
        **changes,
    }  # fmt: skip
    split = {
        "rows": 1234, "gallery": 1000, "distance_rows": 500, "real_against_real_rows": 400, "predictors": [prior],
        "real_against_real": {},
    }  # fmt: skip
    return {"splits": {"test": split}}


def test_each_number_is_in_its_column(capsys: pytest.CaptureFixture[str]) -> None:
    print_metrics(metrics_of())
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if "prior" in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]  # intervals go on in the next line
    assert cells == ["prior", "8", "0.1000 [0.0900,", "0.2000 [0.1900,", "0.3000", "0.4000", "0.5000", "0.7000"]
    assert "1,234 rows of the test split" in printed
    assert "too few rows" in printed, "there is no distance between real images"
    note = " ".join(printed.split())
    assert "nearest of a gallery of 1,000; distances of distributions over 500 rows, of real images against" in note
    assert note.endswith("real ones over 400")


def test_broken_predictions_are_shown_and_refused(capsys: pytest.CaptureFixture[str]) -> None:
    broken = metrics_of(broken="all the same")
    print_metrics(broken)
    assert "broken: all the" in capsys.readouterr().out
    with pytest.raises(InputError, match="predictions of 'prior' for the test split are all the same; train a prior"):
        require_sound(broken)
    require_sound(metrics_of())
