"""The chain: stage names, plans, and the checks before the first stage starts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from priorkit.pipeline.compute.stage import ProgressCallback, no_progress
from priorkit.pipeline.errors import FolderError, InputError, PriorkitError, SettingsError
from priorkit.recipes.chain import (
    STAGES,
    StageName,
    check,
    never_stop,
    plan,
    quiet,
    run,
    run_stage,
    stage_name,
    stages_until,
)
from priorkit.recipes.recipe import Recipe, load_recipe

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def make_recipe(tmp_path: Path, tiny_clip: Path) -> MakeRecipe:
    """Make a recipe with a list of five URLs, the tiny CLIP and folders in `tmp_path`."""
    (tmp_path / "urls.csv").write_text("url,caption\n" + "".join(f"http://h/{n}.jpg,caption {n}\n" for n in range(5)))

    def make(*overrides: str) -> Recipe:
        places = [f"folders.{name}={tmp_path / name}" for name in ("images", "embeddings", "prior", "evaluation")]
        settings = [f"urls={tmp_path / 'urls.csv'}", "download.rows_per_shard=2", "read.test_fraction=0.2"]
        clip = [f"embed.clip.model=local-dir:{tiny_clip}", "embed.clip.pretrained=null"]
        return load_recipe(None, [*places, *settings, *clip, *overrides])

    return make


def test_stage_names_are_checked() -> None:
    assert [stage_name(name) for name in STAGES] == ["download", "embed", "train", "evaluate"]
    with pytest.raises(SettingsError, match="no stage 'sample'; there are download, embed, train, evaluate"):
        stage_name("sample")


def test_the_last_stage_is_included() -> None:
    assert stages_until("download") == ("download",)
    assert stages_until("train") == ("download", "embed", "train")
    assert stages_until("evaluate") == STAGES


def test_the_defaults_ignore_progress_and_never_stop() -> None:
    with quiet("embed", "shards") as report:
        assert report is no_progress
    with never_stop() as should_stop:
        assert should_stop() is False


def test_a_plan_has_a_reason_for_each_stage_without_input(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    download, *others = plan(make_recipe())
    assert download.plan is not None
    assert (download.name, download.problem) == ("download", "")
    assert (download.plan.units, download.plan.pending_units, download.plan.pending_rows) == (3, 3, 5)
    assert [stage.name for stage in others] == ["embed", "train", "evaluate"]
    assert [stage.plan for stage in others] == [None, None, None]
    for stage, missing in zip(others, ("images", "embeddings", "prior"), strict=True):
        assert str(tmp_path / missing) in stage.problem
    assert [path.name for path in tmp_path.iterdir()] == ["urls.csv"]


def test_until_and_limit_reach_the_plan(make_recipe: MakeRecipe) -> None:
    planned = plan(make_recipe(), until="embed", limit=3)
    assert [stage.name for stage in planned] == ["download", "embed"]
    assert planned[0].plan is not None
    assert planned[0].plan.pending_rows == 3


@pytest.mark.parametrize(
    ("stage", "missing"),
    [("download", "none.csv"), ("embed", "images"), ("train", "embeddings"), ("evaluate", "prior")],
)
def test_each_stage_runs_on_the_folder_of_the_stage_before(
    make_recipe: MakeRecipe, tmp_path: Path, stage: StageName, missing: str
) -> None:
    recipe = make_recipe(f"urls={tmp_path / 'none.csv'}")
    with pytest.raises(PriorkitError, match=str(tmp_path / missing)):
        run_stage(stage, recipe, limit=None, overwrite=False, progress=no_progress, stop_requests=never_stop)


def test_only_the_training_listens_for_stop_requests(make_recipe: MakeRecipe) -> None:
    opened = []

    @contextlib.contextmanager
    def stop_requests() -> Iterator[Callable[[], bool]]:
        opened.append(stage)
        yield lambda: False

    for stage in STAGES[1:]:
        with pytest.raises(PriorkitError):
            run_stage(
                stage, make_recipe(), limit=None, overwrite=False, progress=no_progress, stop_requests=stop_requests
            )
    assert opened == ["train"]


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["train.network.max_text_len=4"], SettingsError, r"max_text_len=4 needs embed\.token_states=true"),
        (["evaluate.sample.steps=51", "train.diffusion.timesteps=50"], SettingsError, r"steps=51 is more than .*=50"),
        (["read.test_fraction=0"], SettingsError, r"test has no rows, since read\.test_fraction=0"),
        (["embed.clip.model=local-dir:/nowhere"], InputError, "/nowhere holds no open_clip_config"),
        (["download.url_column=link"], InputError, "link"),
    ],
)
def test_problems_are_found_before_the_first_stage(
    make_recipe: MakeRecipe, tmp_path: Path, overrides: list[str], error: type[Exception], message: str
) -> None:
    for start in (check, run):
        with pytest.raises(error, match=message):
            start(make_recipe(*overrides))  # type: ignore[operator]
    assert [path.name for path in tmp_path.iterdir()] == ["urls.csv"]


def test_the_settings_of_later_stages_may_wait(make_recipe: MakeRecipe) -> None:
    check(make_recipe("read.test_fraction=0"), until="train")
    check(make_recipe("train.network.max_text_len=4", "train.text_condition=online"))
    check(make_recipe("train.network.max_text_len=4", "embed.token_states=true"))
    check(make_recipe("evaluate.sample.steps=50", "train.diffusion.timesteps=50"))


@pytest.mark.parametrize("folder", ["images", "embeddings", "prior", "evaluation"])
def test_other_work_in_a_folder_is_refused_before_the_first_stage(
    make_recipe: MakeRecipe, tmp_path: Path, folder: str
) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(FolderError, match=r"holds other work .*thesis\.tex"):
            run(make_recipe(), overwrite=overwrite)
    assert (tmp_path / folder / "thesis.tex").read_text() == "years of work"


def test_progress_opens_with_the_unit_of_the_stage(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    opened: list[tuple[str, str]] = []

    @contextlib.contextmanager
    def progress(stage: str, unit: str) -> Iterator[ProgressCallback]:
        opened.append((stage, unit))
        raise KeyboardInterrupt
        yield no_progress

    with pytest.raises(KeyboardInterrupt):
        run(make_recipe(), progress=progress)
    assert opened == [("download", "rows")]


def test_the_demo_has_no_plan_before_its_first_run(tmp_path: Path) -> None:
    recipe: Any = load_recipe("demo", [f"folders.images={tmp_path / 'images'}"])
    with pytest.raises(InputError, match="priorkit:demo: its images and list are made by the first run"):
        check(recipe, until="download")
