"""The `priorkit train` command. Heavy dependencies are imported only when it runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ...pipeline.commands.options import (
    DryRunOption,
    JsonOption,
    OverwriteOption,
    SetOption,
    expand_path,
    show_plan,
    show_result,
    worker_overrides,
)
from ...prior.commands.options import CheckpointConfigOption, FunctionOption
from .options import RecipeArgument

if TYPE_CHECKING:
    from ..recipe import Recipe

_SECTIONS = ("train", "read", "folders", "embed", "compute")
"""Sections of a recipe that the command reads."""


def train(
    recipe: RecipeArgument,
    embeddings: Annotated[
        Optional[str],
        typer.Option(show_default="data/embeddings", help="Folder of embedding shards.", callback=expand_path),
    ] = None,
    prior: Annotated[
        Optional[str],
        typer.Option(show_default="data/prior", help="Folder of the trained prior.", callback=expand_path),
    ] = None,
    init_from: Annotated[
        Optional[str],
        typer.Option(help="Prior to start from: a folder, or a .pth of DALLE2-pytorch.", callback=expand_path),
    ] = None,
    config: CheckpointConfigOption = None,
    function_version: FunctionOption = None,
    workers: Annotated[
        Optional[int], typer.Option(show_default="this process", help="Ray workers that train together.")
    ] = None,
    settings: SetOption = None,
    limit: Annotated[
        Optional[int], typer.Option("--limit", min=1, help="Stop after N steps, with a checkpoint.")
    ] = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a prior on embeddings, or continue training from its newest checkpoint.

    Example: priorkit train custom --set train.steps=20000
    """
    from ...pipeline.display.terminal import progress_bar, reported_errors, stop_requests

    with reported_errors():
        from ...prior.train.stage import plan_train
        from ...prior.train.stage import train as run_train
        from ..recipe import declared_clip, require_same_clip

        overrides = [*(settings or []), *worker_overrides(workers)]
        start = {"path": init_from, "config": config, "function_version": function_version}
        chosen = _load(recipe, overrides, start)
        source = embeddings or chosen.folders.embeddings
        target = prior or chosen.folders.prior
        clip = declared_clip(chosen)
        require_same_clip(chosen, source)
        if dry_run:
            plan = plan_train(source, target, chosen.train, chosen.read, chosen.compute, clip=clip, overwrite=overwrite)
            show_plan(plan, as_json)
            return
        with progress_bar("train", "steps", quiet=as_json) as progress, stop_requests() as should_stop:
            result = run_train(
                source, target, chosen.train, chosen.read, chosen.compute,
                clip=clip, limit=limit, overwrite=overwrite, progress=progress, should_stop=should_stop,
            )  # fmt: skip
        show_result(result, as_json)


def _load(recipe: str, overrides: list[str], start: dict[str, str | None]) -> Recipe:
    """Load the recipe, with the options for the initial prior in place of its `train.init_from`.

    Args:
        recipe: path or name of the recipe.
        overrides: settings of the form `a.b=value`.
        start: value of each option by its name in `train.init_from`; None if the option was not given.

    Raises:
        SettingsError: the recipe is invalid, or an option describes a checkpoint, but neither an option nor the recipe
            names one.
    """
    from ...pipeline.errors import SettingsError
    from ...pipeline.settings import literal_location
    from ..recipe import load_recipe

    given = {name: value for name, value in start.items() if value is not None}
    if given and "path" not in given and load_recipe(recipe, overrides, _SECTIONS).train.init_from is None:
        option = f"--{next(iter(given)).replace('_', '-')}"
        raise SettingsError(
            f"{option} describes the prior to start from, and none is named; add --init-from PRIOR, or set "
            "train.init_from.path in the recipe"
        )
    # the options are expanded already
    quoted = [f"train.init_from.{name}={json.dumps(literal_location(value))}" for name, value in given.items()]
    return load_recipe(recipe, [*overrides, *quoted], _SECTIONS)
