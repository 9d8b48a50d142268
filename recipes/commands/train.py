"""The `priorkit train` command. Heavy dependencies are imported only when it runs."""

from __future__ import annotations

import json
from typing import Annotated, Optional

import typer

from ...pipeline.commands.options import (
    DryRunOption,
    JsonOption,
    OverwriteOption,
    SetOption,
    show_plan,
    show_result,
    worker_overrides,
)
from .options import RecipeArgument


def train(
    recipe: RecipeArgument,
    embeddings: Annotated[
        Optional[str], typer.Option(show_default="data/embeddings", help="Folder of embedding shards.")
    ] = None,
    prior: Annotated[
        Optional[str], typer.Option(show_default="data/prior", help="Folder of the trained prior.")
    ] = None,
    init_from: Annotated[
        Optional[str], typer.Option(help="Prior to start from: a folder, or a .pth of DALLE2-pytorch.")
    ] = None,
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
        from ..recipe import declared_clip, load_recipe, require_same_clip

        overrides = [*(settings or []), *worker_overrides(workers)]
        if init_from is not None:
            overrides.append(f"train.init_from.path={json.dumps(init_from)}")
        chosen = load_recipe(recipe, overrides, ("train", "read", "folders", "embed", "compute"))
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
