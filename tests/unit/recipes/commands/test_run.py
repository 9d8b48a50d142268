"""The plans that `priorkit run --dry-run` prints."""

from __future__ import annotations

import json

import pytest

from priorkit.pipeline.compute.stage import StagePlan
from priorkit.recipes.chain import PlannedStage
from priorkit.recipes.commands.run import _show_plans

PLAN = StagePlan("download", "data/images", 4, 3, "shards", 63, 1000, None, 7.0)
PLANNED = [PlannedStage("download", PLAN), PlannedStage("embed", None, "data/images holds nothing")]


def test_stages_without_a_plan_show_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    _show_plans(PLANNED, as_json=False)
    printed = capsys.readouterr().out
    assert "download" in printed
    assert "embed: cannot be planned yet (data/images holds nothing)" in " ".join(printed.split())


def test_json_has_plans_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    _show_plans(PLANNED, as_json=True)
    assert json.loads(capsys.readouterr().out) == [
        PLAN.to_json(), {"stage": "embed", "unknown": "data/images holds nothing"},
    ]  # fmt: skip
