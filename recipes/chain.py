"""Functions that check, plan and run the stages of a recipe: download, embed, train and evaluate.

A stage whose output is already up to date does no work.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..pipeline.compute.stage import ProgressCallback, ProgressFactory, StagePlan, StageResult, no_progress
from ..pipeline.errors import InputError, PriorkitError, SettingsError
from ..pipeline.read.settings import ReadSettings
from .demo_list import demo_images
from .recipe import STAGES, Recipe, StageName, declared_clip, require_same_clip

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
    start: StageName | None = None,
    until: StageName = "evaluate",
    limit: int | None = None,
    overwrite: bool = False,
    progress: ProgressFactory = quiet,
    stop_requests: StopRequests = never_stop,
) -> list[StageResult]:
    """Run the stages of a recipe in order. A stage whose output is already up to date does no work.

    Args:
        recipe: settings of all stages.
        start: first stage to run; None for `recipe.first_stage`. The folder that it reads must exist.
        until: last stage to run.
        limit: maximum number of rows of the URL list to download or, if the run begins with `embed`, of samples to
            embed; None for all.
        overwrite: True to discard the content of the folders of these stages and start again.
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
    first = start or recipe.first_stage
    with contextlib.ExitStack() as stack:
        if first == "download":
            stack.enter_context(demo_images(recipe, progress, limit=limit, overwrite=overwrite))
        check(recipe, start=first, until=until, limit=limit, overwrite=overwrite)
        results = []
        for stage in stages_between(first, until):
            with progress(stage, _PROGRESS_UNITS[stage]) as report:
                result = run_stage(
                    stage,
                    recipe,
                    limit=limit if stage == first else None,
                    overwrite=overwrite,
                    progress=report,
                    stop_requests=stop_requests,
                )
            results.append(result)
    return results


def plan(
    recipe: Recipe,
    *,
    start: StageName | None = None,
    until: StageName = "evaluate",
    limit: int | None = None,
    overwrite: bool = False,
) -> list[PlannedStage]:
    """Plan every stage from `start` up to and including `until`, without running any. See `run` for the arguments.

    Returns:
        One entry per stage. If a stage cannot be planned, its entry contains the reason instead of a plan.
    """
    planned = []
    first = start or recipe.first_stage
    for stage in stages_between(first, until):
        rows = limit if stage == first else None
        try:
            planned.append(PlannedStage(stage, plan_stage(stage, recipe, limit=rows, overwrite=overwrite)))
        except PriorkitError as error:
            planned.append(PlannedStage(stage, None, str(error)))
    return planned


def stages_between(first: StageName, last: StageName) -> tuple[StageName, ...]:
    """Return the names of the stages from `first` to `last`, both included.

    Raises:
        SettingsError: `last` comes before `first`.
    """
    if STAGES.index(last) < STAGES.index(first):
        raise SettingsError(
            f"the run begins with {first}, which comes after {last}; give --until {first} or a later stage"
        )
    return STAGES[STAGES.index(first) : STAGES.index(last) + 1]


def plan_stage(stage: StageName, recipe: Recipe, *, limit: int | None, overwrite: bool) -> StagePlan:
    """Plan one stage without running it. The plan describes the work that remains to be done.

    Args:
        stage: name of the stage.
        recipe: settings of all stages.
        limit: maximum number of rows to download or samples to embed; None for all. Other stages ignore it.
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
        return plan_embed(
            folders.images, folders.embeddings, recipe.embed, compute=recipe.compute, limit=limit, overwrite=overwrite
        )
    if stage == "train":
        return plan_train(
            folders.embeddings, folders.prior, recipe.train, recipe.read, recipe.compute,
            clip=declared_clip(recipe), overwrite=overwrite,
        )  # fmt: skip
    return plan_evaluate(
        folders.prior, folders.embeddings, folders.evaluation, recipe.evaluate, _evaluated_read(recipe), recipe.compute,
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

    `limit` applies only to the stages download and embed, and `stop_requests` only to the training stage.

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
            compute=recipe.compute, limit=limit, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    if stage == "train":
        with stop_requests() as should_stop:
            return train(
                folders.embeddings, folders.prior, recipe.train, recipe.read, recipe.compute,
                clip=declared_clip(recipe), overwrite=overwrite, progress=progress, should_stop=should_stop,
            )  # fmt: skip
    return evaluate(
        folders.prior, folders.embeddings, folders.evaluation, recipe.evaluate, _evaluated_read(recipe),
        compute=recipe.compute, overwrite=overwrite, progress=progress,
    )  # fmt: skip


def _evaluated_read(recipe: Recipe) -> ReadSettings | None:
    """Return the recipe's `read` settings; None, for those that the prior was trained with, if it has none."""
    return recipe.read if "read" in recipe.model_fields_set else None


def check(
    recipe: Recipe,
    *,
    start: StageName | None = None,
    until: StageName = "evaluate",
    limit: int | None = None,
    overwrite: bool = False,
) -> None:
    """Check a recipe's settings, input and output folders. `run` calls this function before any stage starts.

    The stages before `start` are not checked. The evaluation settings and the evaluation folder are checked only if
    `until`, the last stage to run, is `evaluate`. The CLIP settings are checked unless `until` is `download`. The
    prior in `train.init_from` is loaded and checked if the run includes the stages embed and train. The arguments are
    as for `run`.

    Raises:
        PriorkitError: a check failed. Only the first problem is reported.
    """
    first = start or recipe.first_stage
    stages_between(first, until)
    _refuse_settings_without_effect(recipe, first, limit)
    if until == "evaluate":
        _check_evaluation(recipe, first, overwrite=overwrite)
    if first in ("download", "embed"):
        _check_data(recipe, first, until, limit=limit, overwrite=overwrite)
        if until in ("train", "evaluate"):
            _check_start(recipe, overwrite=overwrite)
    elif first == "train":
        require_same_clip(recipe, recipe.folders.embeddings)
    if first != "evaluate":
        from ..prior.train.stage import check_prior_folder

        check_prior_folder(recipe.folders.prior, recipe.train, recipe.read, recipe.compute, overwrite=overwrite)


def _refuse_settings_without_effect(recipe: Recipe, first: StageName, limit: int | None) -> None:
    """Check that the recipe contains no settings that none of its runs uses, and that `limit` has an effect.

    A recipe without `urls` that names a folder has no earlier stages.

    Args:
        first: first stage of this run.

    Raises:
        SettingsError: there are such settings.
    """
    if limit is not None and first in ("train", "evaluate"):
        raise SettingsError(f"--limit {limit} limits the rows to download or embed, and the run begins with {first}")
    begins = recipe.first_stage
    if begins == "download":
        return
    of_embed = recipe.embed.model_fields_set - {"clip"} if begins == "train" else set()
    unused = [*({"download"} & recipe.model_fields_set), *(f"embed.{name}" for name in sorted(of_embed))]
    if unused:
        raise SettingsError(
            f"{', '.join(unused)}: no effect, since the recipe names no urls, and its run begins with {begins}; leave "
            "this out, or name urls"
        )


def _check_data(recipe: Recipe, first: StageName, until: StageName, *, limit: int | None, overwrite: bool) -> None:
    """Check the settings, the URL list and the folders of download and embed. The arguments are as for `check`."""
    from ..pipeline.clip.encoder import check_clip
    from ..pipeline.compute.device import resolve
    from ..pipeline.contract.commit import check_stage
    from ..pipeline.contract.storage import Store
    from ..pipeline.download.stage import check_download
    from ..pipeline.embed.stage import embed_manifest

    train = recipe.train
    if train.network.max_token_states and train.text_condition != "online" and not recipe.embed.token_states:
        raise SettingsError(
            f"train.network takes up to {train.network.max_token_states} token states: set embed.token_states=true, so "
            "that there are some to train on; or train.text_condition=online"
        )
    if train.diffusion.takes_raw_images and recipe.embed.engine != "native":
        raise SettingsError(
            f"train.diffusion.normaliser={train.diffusion.normaliser} needs the norms of embeddings, which "
            f"embed.engine={recipe.embed.engine} does not store; set embed.engine=native"
        )
    if until != "download":
        check_clip(recipe.embed.clip)
    folders = recipe.folders
    if first == "download" and recipe.demo_port is not None and not Path(recipe.url_list).exists():
        raise InputError(f"{recipe.urls}: its images and list are made by the first run, so there is no plan yet")
    if first == "download" and recipe.urls is None and not Path(recipe.url_list).exists():
        raise InputError(
            f"the recipe names no urls, and there is no {recipe.url_list} here; name a list, as in --set urls=LIST, or "
            "name folders.images or folders.embeddings, from which a run begins with embed or train"
        )
    if first == "download":
        check_download(recipe.url_list, folders.images, recipe.download, limit=limit, overwrite=overwrite)
    embeddings = Store(folders.embeddings)
    resolved = resolve(recipe.embed, "embed", recipe.compute)
    check_stage(embeddings, embed_manifest(resolved, None if overwrite else embeddings), overwrite=overwrite)


def _check_start(recipe: Recipe, *, overwrite: bool) -> None:
    """Check that training can start from the prior in `train.init_from`, if there is one.

    Raises:
        PriorkitError: the prior is missing or damaged, or does not fit the recipe's CLIP model or its settings.
    """
    from ..pipeline.contract.manifest import read_manifest
    from ..pipeline.contract.storage import Store
    from ..prior.train.start import check_planned_start

    if recipe.train.init_from is None:
        return
    folder = recipe.folders.embeddings
    earlier = None if overwrite else read_manifest(Store(folder))
    check_planned_start(
        recipe.train,
        recipe.embed.clip,
        {} if earlier is None else earlier.about.get("clip", {}),
        folder,
        stores_states=recipe.embed.token_states,
    )


def _check_evaluation(recipe: Recipe, first: StageName, *, overwrite: bool) -> None:
    """Check the evaluation folder, and the evaluation settings against the training settings and the split fractions.

    If the run begins with `evaluate`, only the folder is checked, since the recipe does not describe the prior then.

    Sampling must not use more steps than training has timesteps, and the prior must support the sampling settings.
    The `read` settings must assign a nonzero fraction of the rows to each evaluated split.

    Raises:
        SettingsError: one of these conditions is not met.
    """
    from ..pipeline.contract.commit import check_stage
    from ..pipeline.contract.storage import Store
    from ..prior.evaluate.folder import evaluate_manifest
    from ..prior.evaluate.scoring import variants
    from ..prior.model.config import check_sampling

    check_stage(Store(recipe.folders.evaluation), evaluate_manifest(), overwrite=overwrite)
    if first == "evaluate":
        return
    train = recipe.train
    for variant in variants(recipe.evaluate):
        steps, timesteps = variant.sample.steps, train.diffusion.timesteps
        if steps > timesteps:
            raise SettingsError(
                f"evaluate.sample.steps={steps} is more than train.diffusion.timesteps={timesteps}; lower it"
            )
        check_sampling(train.network, train.network.max_token_states > 0, train.diffusion, variant.sample)
    for split in recipe.evaluate.splits:
        if getattr(recipe.read, f"{split}_fraction") == 0:
            raise SettingsError(f"evaluate.splits: {split} has no rows, since read.{split}_fraction=0; raise that")
