"""All stages of a recipe, one after the other: what is not up to date, and only that."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..pipeline.compute.stage import ProgressCallback, ProgressFactory, StagePlan, StageResult, no_progress
from ..pipeline.errors import InputError, PriorkitError, SettingsError
from .demo_list import demo_images
from .recipe import Recipe

StageName = Literal["download", "embed", "train", "evaluate"]
STAGES: tuple[StageName, ...] = ("download", "embed", "train", "evaluate")

StopRequests = Callable[[], contextlib.AbstractContextManager[Callable[[], bool]]]
"""Opens a block in which the function that it yields says whether to stop."""

_UNITS = {"download": "rows", "embed": "shards", "train": "steps", "evaluate": "rows"}


def stage_name(name: str) -> StageName:
    """`name` if it is a stage; SettingsError otherwise."""
    for known in STAGES:
        if name == known:
            return known
    raise SettingsError(f"no stage {name!r}; there are {', '.join(STAGES)}")


@contextlib.contextmanager
def quiet(stage: str, unit: str) -> Iterator[ProgressCallback]:
    """Progress for callers that do not want to know."""
    yield no_progress


@contextlib.contextmanager
def never_stop() -> Iterator[Callable[[], bool]]:
    """Stop requests for callers that have none."""
    yield lambda: False


@dataclass(frozen=True)
class Step:
    """One stage of a recipe."""

    name: StageName
    plan: Callable[[], StagePlan]
    run: Callable[[ProgressCallback], StageResult]


def run(
    recipe: Recipe,
    *,
    until: StageName = "evaluate",
    limit: int | None = None,
    overwrite: bool = False,
    progress: ProgressFactory = quiet,
    stop_requests: StopRequests = never_stop,
) -> list[StageResult]:
    """Bring every stage of a recipe up to date, in order.

    Args:
        until: the last stage to run.
        limit: use only the first rows of the list, this many.
        overwrite: discard what the folders hold and start anew.
        progress: opens a place to report each stage's progress to.
        stop_requests: opened around the training, which stops with a checkpoint when it is asked to.

    Raises:
        PriorkitError: the first thing that is wrong; all that can be checked is, before anything starts.
    """
    with demo_images(recipe, progress, limit=limit, overwrite=overwrite):
        check(recipe, until=until, limit=limit, overwrite=overwrite)
        results = []
        for step in steps(recipe, until=until, limit=limit, overwrite=overwrite, stop_requests=stop_requests):
            with progress(step.name, _UNITS[step.name]) as report:
                results.append(step.run(report))
    return results


def plan(
    recipe: Recipe, *, until: StageName = "evaluate", limit: int | None = None, overwrite: bool = False
) -> list[StagePlan | tuple[StageName, str]]:
    """What `run` would do: a plan for each stage, or why there can be none yet."""
    plans: list[StagePlan | tuple[StageName, str]] = []
    for step in steps(recipe, until=until, limit=limit, overwrite=overwrite):
        try:
            plans.append(step.plan())
        except PriorkitError as error:
            plans.append((step.name, str(error)))
    return plans


def steps(
    recipe: Recipe,
    *,
    until: StageName = "evaluate",
    limit: int | None = None,
    overwrite: bool = False,
    stop_requests: StopRequests = never_stop,
) -> Sequence[Step]:
    """The stages of a recipe up to `until`, ready to plan or run."""
    from ..pipeline.download.stage import download, plan_download
    from ..pipeline.embed.stage import embed, plan_embed
    from ..prior.evaluate.stage import evaluate, plan_evaluate
    from ..prior.train.stage import plan_train, train

    folders, read = recipe.folders, recipe.read

    def run_train(progress: ProgressCallback) -> StageResult:
        with stop_requests() as should_stop:
            return train(
                folders.embeddings, folders.prior, recipe.train, read, recipe.compute,
                overwrite=overwrite, progress=progress, should_stop=should_stop,
            )  # fmt: skip

    every = (
        Step(
            "download",
            lambda: plan_download(recipe.url_list, folders.images, recipe.download, limit=limit, overwrite=overwrite),
            lambda progress: download(
                recipe.url_list, folders.images, recipe.download,
                compute=recipe.compute, limit=limit, overwrite=overwrite, progress=progress,
            ),
        ),
        Step(
            "embed",
            lambda: plan_embed(
                folders.images, folders.embeddings, recipe.embed, compute=recipe.compute, overwrite=overwrite
            ),
            lambda progress: embed(
                folders.images, folders.embeddings, recipe.embed,
                compute=recipe.compute, overwrite=overwrite, progress=progress,
            ),
        ),
        Step(
            "train",
            lambda: plan_train(
                folders.embeddings, folders.prior, recipe.train, read, recipe.compute, overwrite=overwrite
            ),
            run_train,
        ),
        Step(
            "evaluate",
            lambda: plan_evaluate(
                folders.prior, folders.embeddings, folders.evaluation, recipe.evaluate, read, recipe.compute,
                overwrite=overwrite,
            ),
            lambda progress: evaluate(
                folders.prior, folders.embeddings, folders.evaluation, recipe.evaluate, read,
                compute=recipe.compute, overwrite=overwrite, progress=progress,
            ),
        ),
    )  # fmt: skip
    return every[: STAGES.index(until) + 1]


def check(recipe: Recipe, *, until: StageName = "evaluate", limit: int | None = None, overwrite: bool = False) -> None:
    """Check list, settings and folders of all stages up to `until`, before any of them starts."""
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
