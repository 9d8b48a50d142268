"""The chain: stage names, plans, and the checks before the first stage starts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from priorkit.pipeline.clip.encoder import identify_clip
from priorkit.pipeline.clip.settings import ClipSettings
from priorkit.pipeline.compute.stage import ProgressCallback, no_progress
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import FolderError, InputError, PriorkitError, SettingsError
from priorkit.prior.model.config import PriorConfig, build_network, build_normaliser
from priorkit.prior.model.folder import save_prior
from priorkit.prior.network.settings import NetworkSettings
from priorkit.prior.objective.settings import DiffusionSettings
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
    stages_between,
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


def test_the_first_and_the_last_stage_are_included() -> None:
    assert stages_between("download", "download") == ("download",)
    assert stages_between("embed", "train") == ("embed", "train")
    assert stages_between("download", "evaluate") == STAGES
    with pytest.raises(
        SettingsError, match="the run begins with train, which comes after embed; give --until train or"
    ):
        stages_between("train", "embed")


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


def test_a_limit_is_that_of_the_first_stage(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(4):
        (tmp_path / f"images/{number}.jpg").write_bytes(b"x")
        (tmp_path / f"images/{number}.txt").write_bytes(b"x")
    embed = plan(make_recipe(), start="embed", until="embed", limit=3)[0].plan
    assert embed is not None
    assert embed.pending_rows == 3
    for stage in ("train", "evaluate"):
        with pytest.raises(SettingsError, match=f"--limit 3 limits the rows to download or embed, and .* with {stage}"):
            check(make_recipe(), start=stage, limit=3)


def test_a_run_that_begins_later_needs_no_list_and_no_clip(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "urls.csv").unlink()
    nowhere = "embed.clip.model=local-dir:/nowhere"
    check(make_recipe(), start="embed")
    check(make_recipe(nowhere, "train.network.max_text_len=4"), start="evaluate")
    with pytest.raises(InputError, match=r"urls\.csv"):
        check(make_recipe())
    with pytest.raises(InputError, match="/nowhere holds no open_clip_config"):
        check(make_recipe(nowhere), start="embed")
    with pytest.raises(InputError, match="holds no result of `priorkit embed`"):
        check(make_recipe(), start="train")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["folders.images=i", "download.image_size=32"], "download: no effect, .* begins with embed; leave this out"),
        (
            ["folders.embeddings=e", "embed.batch_size=3", "embed.clip.model=priorkit:demo"],
            "embed.batch_size: no effect",
        ),
    ],
)
def test_settings_of_stages_that_a_recipe_does_not_have_are_refused(settings: list[str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        check(load_recipe(None, settings))


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
        (["train.network.max_text_len=4"], SettingsError, r"up to 4 token states: set embed\.token_states=true"),
        (
            ["train.diffusion.normaliser=clip_stats", "embed.engine=clip-retrieval"], SettingsError,
            r"normaliser=clip_stats needs the norms .*; set embed\.engine=native",
        ),
        (["evaluate.sample.steps=51", "train.diffusion.timesteps=50"], SettingsError, r"steps=51 is more than .*=50"),
        (["read.test_fraction=0"], SettingsError, r"test has no rows, since read\.test_fraction=0"),
        (["embed.clip.model=local-dir:/nowhere"], InputError, "/nowhere holds no open_clip_config"),
        (["download.url_column=link"], InputError, "link"),
    ],
)  # fmt: skip
def test_problems_are_found_before_the_first_stage(
    make_recipe: MakeRecipe, tmp_path: Path, overrides: list[str], error: type[Exception], message: str
) -> None:
    for start in (check, run):
        with pytest.raises(error, match=message):
            start(make_recipe(*overrides))  # type: ignore[operator]
    assert [path.name for path in tmp_path.iterdir()] == ["urls.csv"]


def write_start(folder: Path, embed_dim: int = 16, max_text_len: int = 0, clip: dict[str, Any] | None = None) -> str:
    """Write a small prior with random weights, and return the setting that starts from it."""
    config = PriorConfig(
        embed_dim=embed_dim,
        token_width=16 if max_text_len else None,
        network=NetworkSettings(width=16, depth=1, heads=2, dim_head=8, max_text_len=max_text_len),
        diffusion=DiffusionSettings(),
        clip=clip or {},
        clip_settings={},
    )
    save_prior(Store(str(folder)).create, config, build_network(config), build_normaliser(config))
    return f"train.init_from.path={folder}"


def test_a_start_that_does_not_fit_is_refused_before_the_first_stage(
    make_recipe: MakeRecipe, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("starts")
    other = write_start(folder / "other", clip={"weights_sha256": "0" * 64})
    states = write_start(folder / "states", max_text_len=4)
    for settings, message in (
        ([f"train.init_from.path={folder / 'none'}"], "no prior is there"),
        ([write_start(folder / "small", 8)], r"predicts embeddings of 8 .* holds embeddings of 16"),
        ([other], "was trained with another CLIP than the one that made"),
        ([write_start(folder / "wide"), "train.network.width=32"], r"width=32, but the prior to start from has 16"),
        ([states], r"takes token states; set embed\.token_states=true"),
        ([states, "embed.token_states=true", "train.text_condition=pooled"], "text_condition=pooled"),
    ):
        for start in (check, run):
            with pytest.raises(PriorkitError, match=message):
                start(make_recipe(*settings))  # type: ignore[operator]
    assert [path.name for path in tmp_path.iterdir()] == ["urls.csv"]


def test_a_start_that_fits_is_accepted(
    make_recipe: MakeRecipe, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("starts")
    same = write_start(folder / "same", clip=identify_clip(ClipSettings(model=f"local-dir:{tiny_clip}")))
    states = write_start(folder / "states", max_text_len=4)
    check(make_recipe(same))
    check(make_recipe(states, "embed.token_states=true"))
    check(make_recipe(states, "train.text_condition=online"))
    check(make_recipe(f"train.init_from.path={folder / 'none'}"), until="embed")


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


def test_a_recipe_without_a_list_says_what_to_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(None, [f"folders.prior={tmp_path / 'prior'}"])
    with pytest.raises(InputError, match=r"names no urls, and there is no urls\.parquet here; name a list, as"):
        check(recipe, until="download")


def test_the_demo_has_no_plan_before_its_first_run(tmp_path: Path) -> None:
    recipe: Any = load_recipe("demo", [f"folders.images={tmp_path / 'images'}"])
    with pytest.raises(InputError, match="priorkit:demo: its images and list are made by the first run"):
        check(recipe, until="download")
