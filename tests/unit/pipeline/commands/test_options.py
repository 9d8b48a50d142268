"""Options that commands share: their settings, and the output of plans and results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from priorkit.pipeline.commands.options import command_settings, expand_path, show_plan, show_result, worker_overrides
from priorkit.pipeline.compute.stage import StagePlan, StageResult
from priorkit.pipeline.errors import SettingsError

PLAN = StagePlan("embed", "data/embeddings", 5, 2, "shards", 200, 1000, 5000, 60.0)
RESULT = StageResult("embed", "data/embeddings", 5, 2, "shards", 500, 1.5, {"success": 500})


def test_options_come_after_set_and_workers() -> None:
    overrides = ["download.url_column=a", "download.image_size=64", "compute.workers=7"]
    chosen = command_settings("download", overrides, {"download.url_column": "b", "download.image_size": None}, 3)
    assert (chosen.download.url_column, chosen.download.image_size) == ("b", 64)
    assert (chosen.compute.backend, chosen.compute.workers) == ("ray", 3)


@pytest.mark.parametrize(("typed", "expected"), [("no", "no"), ("1.5", "1.5"), ("a: b", "a: b"), ("null", None)])
def test_an_option_is_text_except_for_null(typed: str, expected: str | None) -> None:
    chosen = command_settings("download", None, {"download.caption_column": typed}, None)
    assert chosen.download.caption_column == expected
    assert chosen.compute.backend == "local"


def test_settings_of_other_sections_are_refused() -> None:
    with pytest.raises(SettingsError, match="this command reads embed, compute only"):
        command_settings("embed", ["download.image_size=64"], {}, None)


def test_workers_choose_ray() -> None:
    assert worker_overrides(None) == []
    assert worker_overrides(4) == ["compute.backend=ray", "compute.workers=4"]


def test_plans_and_results_are_printed_as_json_or_tables(capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(PLAN, as_json=True)
    assert json.loads(capsys.readouterr().out) == PLAN.to_json()
    show_result(RESULT, as_json=True)
    assert json.loads(capsys.readouterr().out) == RESULT.to_json()
    show_plan(PLAN, as_json=False)
    assert "2 of 5 shards" in capsys.readouterr().out
    show_result(RESULT, as_json=False)
    assert "5 (2 done now, in 1.5 s)" in capsys.readouterr().out


def test_paths_of_options_are_expanded_as_in_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/me")
    monkeypatch.setenv("RUNS", "/runs")
    assert expand_path(None) is None
    assert expand_path("~/a$$b") == "/users/me/a$b"
    assert expand_path(Path("$RUNS/x")) == Path("/runs/x")
    assert expand_path(("~", "~other/x", "a~", "s3://${RUNS}")) == ["/users/me", "~other/x", "a~", "s3:///runs"]
    with pytest.raises(typer.BadParameter, match=r"no variable \$MISSING; set it, or write \$\$"):
        expand_path("$MISSING/x")
