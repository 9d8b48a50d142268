"""Functions that check, plan and run the stages of a recipe: download, embed, train and evaluate.

A stage whose output is already up to date does no work.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..pipeline.compute.stage import ProgressCallback, ProgressFactory, StagePlan, StageResult, no_progress
from ..pipeline.errors import InputError, PriorkitError, SettingsError
from .demo_list import demo_images
from .recipe import Recipe

StageName = Literal["download", "embed", "train", "evaluate"]
STAGES: tuple[StageName, ...] = ("download", "embed", "train", "evaluate")
"""Stage names, in the order in which the stages run."""

StopRequests = Callable[[], contextlib.AbstractContextManager[Callable[[], bool]]]
"""Function that returns a context manager for detecting requests to stop, such as Ctrl-C.

The context manager yields a function that returns True once a stop has been requested during the `with` block.
"""

_PROGRESS_UNITS = {"download": "rows", "embed": "shards", "train": "steps", "evaluate": "rows"}


@dataclass(frozen=True)
class PlannedStage:
    """Result of planning one stage in a dry run: its plan, or the reason why it cannot be planned yet."""

    name: StageName
    plan: StagePlan | None
    """Plan of the stage; None if the stage cannot be planned, for example because its input does not exist yet."""
    problem: str = ""
    """Reason why the stage cannot be planned; empty if the stage has a plan."""


def stage_name(name: str) -> StageName:
    """Return `name` if it is the name of a stage.

    Raises:
        SettingsError: no stage has this name. The message lists the names of the stages.
    """
    for known in STAGES:
        if name == known:
            return known
    raise SettingsError(f"no stage {name!r}; there are {', '.join(STAGES)}")


@contextlib.contextmanager
def quiet(stage: str, unit: str) -> Iterator[ProgressCallback]:
    """Context manager that yields a progress callback that does nothing. This is the default for `run`."""
    yield no_progress


@contextlib.contextmanager
def never_stop() -> Iterator[Callable[[], bool]]:
    """Context manager that yields a function that always returns False, so that `run` is never asked to stop."""
    yield lambda: False


def run(
    recipe: Recipe,
    *,
    until: StageName = "evaluate",
    limit: int | None = None,
    overwrite: bool = False,
    progress: ProgressFactory = quiet,
    stop_requests: StopRequests = never_stop,
) -> list[StageResult]:
    """Run the stages of a recipe in order. A stage whose output is already up to date does no work.

    Args:
        recipe: settings of all stages.
        until: last stage to run.
        limit: maximum number of rows of the URL list to download; None for all rows.
        overwrite: True to discard the content of the stages' folders and start again.
        progress: function that takes the name of a stage and its unit of progress, such as `rows`. It returns a context
            manager that yields the stage's progress callback.
        stop_requests: function that returns a context manager for the training stage. The context manager yields a
            function `should_stop`. Once `should_stop()` returns True, training writes a checkpoint and stops.

    Returns:
        The result of each stage, in order.

    Raises:
        PriorkitError: a check or a stage failed. Before the first stage starts, `check` checks everything that can be
            checked in advance.
    """
    with demo_images(recipe, progress, limit=limit, overwrite=overwrite):
        check(recipe, until=until, limit=limit, overwrite=overwrite)
        results = []
        for stage in stages_until(until):
            with progress(stage, _PROGRESS_UNITS[stage]) as report:
                result = run_stage(
                    stage, recipe, limit=limit, overwrite=overwrite, progress=report, stop_requests=stop_requests
                )
            results.append(result)
    return results


def plan(
    recipe: Recipe, *, until: StageName = "evaluate", limit: int | None = None, overwrite: bool = False
) -> list[PlannedStage]:
    """Plan every stage up to and including `until`, without running any.

    Returns:
        One entry per stage. If a stage cannot be planned, its entry contains the reason instead of a plan.
    """
    planned = []
    for stage in stages_until(until):
        try:
            planned.append(PlannedStage(stage, plan_stage(stage, recipe, limit=limit, overwrite=overwrite)))
        except PriorkitError as error:
            planned.append(PlannedStage(stage, None, str(error)))
    return planned


def stages_until(last: StageName) -> tuple[StageName, ...]:
    """Return the names of the stages up to and including `last`."""
    return STAGES[: STAGES.index(last) + 1]


def plan_stage(stage: StageName, recipe: Recipe, *, limit: int | None, overwrite: bool) -> StagePlan:
    """Plan one stage without running it. The plan describes the work that remains to be done.

    Args:
        stage: name of the stage.
        recipe: settings of all stages.
        limit: maximum number of rows of the URL list to download; None for all rows. Other stages ignore it.
        overwrite: True to plan the stage as if it discarded its existing output and started again.

    Raises:
        PriorkitError: the stage cannot be planned.
    """
    from ..pipeline.download.stage import plan_download
    from ..pipeline.embed.stage import plan_embed
    from ..prior.evaluate.stage import plan_evaluate
    from ..prior.train.stage import plan_train

    folders = recipe.folders
    if stage == "download":
        return plan_download(recipe.url_list, folders.images, recipe.download, limit=limit, overwrite=overwrite)
    if stage == "embed":
        return plan_embed(folders.images, folders.embeddings, recipe.embed, compute=recipe.compute, overwrite=overwrite)
    if stage == "train":
        return plan_train(
            folders.embeddings, folders.prior, recipe.train, recipe.read, recipe.compute, overwrite=overwrite
        )
    return plan_evaluate(
        folders.prior, folders.embeddings, folders.evaluation, recipe.evaluate, recipe.read, recipe.compute,
        overwrite=overwrite,
    )  # fmt: skip


def run_stage(
    stage: StageName,
    recipe: Recipe,
    *,
    limit: int | None,
    overwrite: bool,
    progress: ProgressCallback,
    stop_requests: StopRequests,
) -> StageResult:
    """Run one stage of a recipe. The arguments are as for `run`, except for `progress`.

    `limit` applies only to the download stage, and `stop_requests` only to the training stage.

    Args:
        progress: progress callback of the stage.

    Raises:
        PriorkitError: the stage failed, or training stopped because a stop was requested.
    """
    from ..pipeline.download.stage import download
    from ..pipeline.embed.stage import embed
    from ..prior.evaluate.stage import evaluate
    from ..prior.train.stage import train

    folders = recipe.folders
    if stage == "download":
        return download(
            recipe.url_list, folders.images, recipe.download,
            compute=recipe.compute, limit=limit, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    if stage == "embed":
        return embed(
            folders.images, folders.embeddings, recipe.embed,
            compute=recipe.compute, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    if stage == "train":
        with stop_requests() as should_stop:
            return train(
                folders.embeddings, folders.prior, recipe.train, recipe.read, recipe.compute,
                overwrite=overwrite, progress=progress, should_stop=should_stop,
            )  # fmt: skip
    return evaluate(
        folders.prior, folders.embeddings, folders.evaluation, recipe.evaluate, recipe.read,
        compute=recipe.compute, overwrite=overwrite, progress=progress,
    )  # fmt: skip


def check(recipe: Recipe, *, until: StageName = "evaluate", limit: int | None = None, overwrite: bool = False) -> None:
    """Check a recipe's URL list, settings and output folders. `run` calls this function before any stage starts.

    The evaluation settings and the evaluation folder are checked only if `until`, the last stage to run, is `evaluate`.
    The CLIP settings are checked unless `until` is `download`. The other arguments are as for `run`.

    Raises:
        PriorkitError: a check failed. Only the first problem is reported.
    """
    from ..pipeline.clip.encoder import check_clip
    from ..pipeline.compute.device import resolve
    from ..pipeline.contract.commit import check_stage
    from ..pipeline.contract.storage import Store
    from ..pipeline.download.stage import check_download
    from ..pipeline.embed.stage import embed_manifest
    from ..prior.evaluate.folder import evaluate_manifest
    from ..prior.train.stage import check_prior_folder

    train = recipe.train
    if train.network.max_text_len and train.text_condition != "online" and not recipe.embed.token_states:
        raise SettingsError(
            f"train.network.max_text_len={train.network.max_text_len} needs embed.token_states=true, so that there are "
            "token states to train on; or train.text_condition=online"
        )
    if until == "evaluate":
        _check_evaluation(recipe)
        check_stage(Store(recipe.folders.evaluation), evaluate_manifest(), overwrite=overwrite)
    if until != "download":
        check_clip(recipe.embed.clip)
    folders = recipe.folders
    if recipe.demo_port is not None and not Path(recipe.url_list).exists():
        raise InputError(f"{recipe.urls}: its images and list are made by the first run, so there is no plan yet")
    check_download(recipe.url_list, folders.images, recipe.download, limit=limit, overwrite=overwrite)
    embeddings = Store(folders.embeddings)
    resolved = resolve(recipe.embed, "embed", recipe.compute)
    check_stage(embeddings, embed_manifest(resolved, None if overwrite else embeddings), overwrite=overwrite)
    check_prior_folder(folders.prior, train, recipe.read, recipe.compute, overwrite=overwrite)


def _check_evaluation(recipe: Recipe) -> None:
    """Check the evaluation settings against the training settings and the split fractions.

    Sampling must not use more steps than training has timesteps, and the prior must support the sampling settings.
    The `read` settings must assign a nonzero fraction of the rows to each evaluated split.

    Raises:
        SettingsError: one of these conditions is not met.
    """
    from ..prior.evaluate.scoring import variants
    from ..prior.model.config import check_sampling

    train = recipe.train
    for variant in variants(recipe.evaluate):
        steps, timesteps = variant.sample.steps, train.diffusion.timesteps
        if steps > timesteps:
            raise SettingsError(
                f"evaluate.sample.steps={steps} is more than train.diffusion.timesteps={timesteps}; lower it"
            )
        check_sampling(train.network, train.network.max_text_len > 0, train.diffusion, variant.sample)
    for split in recipe.evaluate.splits:
        if getattr(recipe.read, f"{split}_fraction") == 0:
            raise SettingsError(f"evaluate.splits: {split} has no rows, since read.{split}_fraction=0; raise that")
