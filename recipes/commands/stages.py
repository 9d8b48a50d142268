"""The command that trains, and those of the whole chain. Heavy imports happen when a command runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

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
from .evaluate import print_metrics, require_sound

if TYPE_CHECKING:
    from ...pipeline.compute.stage import StagePlan, StageResult
    from ..chain import StageName

RecipeArgument = Annotated[str, typer.Argument(help="YAML file, or the name of a recipe that comes with priorkit.")]


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
    """Train a prior on embeddings, or go on from its newest checkpoint.

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
        source, target, clip = (
            embeddings or chosen.folders.embeddings,
            prior or chosen.folders.prior,
            declared_clip(chosen),
        )
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


def run(
    recipe: RecipeArgument,
    until: Annotated[str, typer.Option(help="Last stage: download, embed, train or evaluate.")] = "evaluate",
    workers: Annotated[
        Optional[int], typer.Option(show_default="the recipe's", help="Ray workers to spread every stage over.")
    ] = None,
    settings: SetOption = None,
    limit: Annotated[
        Optional[int], typer.Option("--limit", min=1, help="Use the first N rows of the list only.")
    ] = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run every stage of a recipe that is not up to date, and only those.

    Example: priorkit run custom --set urls=my_list.csv --dry-run
    """
    from ...pipeline.display.terminal import print_json, progress_bar, reported_errors, stop_requests

    with reported_errors():
        from ...prior.evaluate.folder import read_metrics
        from .. import chain
        from ..recipe import load_recipe

        chosen = load_recipe(recipe, [*(settings or []), *worker_overrides(workers)])
        last = chain.stage_name(until)
        if dry_run:
            chain.check(chosen, until=last, limit=limit, overwrite=overwrite)
            _show_plans(chain.plan(chosen, until=last, limit=limit, overwrite=overwrite), as_json)
            return
        results = chain.run(
            chosen, until=last, limit=limit, overwrite=overwrite, stop_requests=stop_requests,
            progress=lambda stage, unit: progress_bar(stage, unit, quiet=as_json),
        )  # fmt: skip
        metrics = read_metrics(chosen.folders.evaluation) if last == "evaluate" else None
        if as_json:
            print_json({"stages": [result.to_json() for result in results], "metrics": metrics})
        else:
            _show_results(results)
            if metrics is not None:
                print_metrics(metrics)
        if metrics is not None:
            require_sound(metrics)


def status(
    recipe: Annotated[
        Optional[str], typer.Argument(show_default="default folders", help="Recipe to hold the folders against.")
    ] = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what each stage has done; with a recipe, also what is not up to date.

    Example: priorkit status my_recipe.yaml
    """
    from ...pipeline.display.terminal import print_json, print_table, reported_errors

    with reported_errors():
        from ..recipe import load_recipe
        from ..status import stage_states

        states = stage_states(load_recipe(recipe, settings or []), plan_too=recipe is not None)
        if as_json:
            print_json([state.to_json() for state in states])
            return
        rows = [(state.stage, state.folder, f"{state.shards:,}", f"{state.rows:,}", state.state) for state in states]
        print_table("status", ("stage", "folder", "shards", "rows", "state"), rows)


def demo(
    folder: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("data/demo"),
    port: Annotated[
        Optional[int],
        typer.Option(min=1, max=65535, show_default="47811", help="Port of this machine to serve the images on."),
    ] = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the whole chain offline on about 3,950 emoji, from a list of URLs to an evaluated prior and a picture.

    Example: priorkit demo --folder /tmp/demo
    """
    from ...pipeline.display.terminal import print_json, print_line, progress_bar, reported_errors, stop_requests

    with reported_errors():
        from ...prior.evaluate.folder import read_metrics
        from ..demo_run import run_demo

        done = run_demo(
            folder, port, settings or [], lambda stage, unit: progress_bar(stage, unit, quiet=as_json), stop_requests
        )
        metrics = read_metrics(done.recipe.folders.evaluation)
        if as_json:
            stages = [result.to_json() for result in done.results]
            print_json({"stages": stages, "metrics": metrics, "picture": str(done.picture)})
            return
        _show_results(done.results)
        print_metrics(metrics)
        print_line(f"picture: {done.picture}")
        print_line(f'next: priorkit sample {folder / "prior"} "red heart"')


def _show_plans(plans: list[StagePlan | tuple[StageName, str]], as_json: bool) -> None:
    from ...pipeline.compute.stage import StagePlan
    from ...pipeline.display.terminal import print_json, print_line, print_plans

    known = [plan for plan in plans if isinstance(plan, StagePlan)]
    unknown = [plan for plan in plans if not isinstance(plan, StagePlan)]
    if as_json:
        print_json([plan.to_json() for plan in known] + [{"stage": name, "unknown": why} for name, why in unknown])
        return
    if known:
        print_plans(known)
    for name, why in unknown:
        print_line(f"{name}: cannot be planned yet ({why})")


def _show_results(results: list[StageResult]) -> None:
    from ...pipeline.display.terminal import print_result

    for result in results:
        print_result(result)
