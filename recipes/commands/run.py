"""The `priorkit run` command. Heavy dependencies are imported only when it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ...pipeline.commands.options import DryRunOption, JsonOption, OverwriteOption, SetOption, worker_overrides
from .metrics import print_metrics, require_sound
from .options import RecipeArgument

if TYPE_CHECKING:
    from ..chain import PlannedStage


def run(
    recipe: RecipeArgument,
    start: Annotated[
        Optional[str],
        typer.Option("--from", show_default="the recipe's", help="First stage; the folder that it reads must exist."),
    ] = None,
    until: Annotated[str, typer.Option(help="Last stage: download, embed, train or evaluate.")] = "evaluate",
    workers: Annotated[
        Optional[int], typer.Option(show_default="the recipe's", help="Ray workers to spread every stage over.")
    ] = None,
    settings: SetOption = None,
    limit: Annotated[
        Optional[int], typer.Option("--limit", min=1, help="Use the first N rows of the list or images only.")
    ] = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run the stages of a recipe, except those whose output is up to date.

    A recipe without `urls` begins with the folder that it names, folders.images or folders.embeddings.

    Example: priorkit run custom --set urls=my_list.csv --dry-run
    """
    from ...pipeline.display.terminal import print_json, print_result, progress_bar, reported_errors, stop_requests

    with reported_errors():
        from ...pipeline.errors import InputError
        from ...prior.evaluate.folder import read_metrics
        from .. import chain
        from ..recipe import load_recipe

        chosen = load_recipe(recipe, [*(settings or []), *worker_overrides(workers)])
        first, last = chosen.first_stage if start is None else chain.stage_name(start), chain.stage_name(until)
        if dry_run:
            chain.check(chosen, start=first, until=last, limit=limit, overwrite=overwrite)
            planned = chain.plan(chosen, start=first, until=last, limit=limit, overwrite=overwrite)
            if planned[0].plan is None:  # its input must exist, unlike that of the stages that follow
                raise InputError(planned[0].problem)
            _show_plans(planned, as_json)
            return
        results = chain.run(
            chosen, start=first, until=last, limit=limit, overwrite=overwrite, stop_requests=stop_requests,
            progress=lambda stage, unit: progress_bar(stage, unit, quiet=as_json),
        )  # fmt: skip
        metrics = read_metrics(chosen.folders.evaluation) if last == "evaluate" else None
        if as_json:
            print_json({"stages": [result.to_json() for result in results], "metrics": metrics})
        else:
            for result in results:
                print_result(result)
            if metrics is not None:
                print_metrics(metrics)
        if metrics is not None:
            require_sound(metrics)


def _show_plans(planned: list[PlannedStage], as_json: bool) -> None:
    """Print the plans of the stages, as a table or as JSON.

    After the plans, list the stages that cannot be planned yet, each with the reason.
    """
    from ...pipeline.display.terminal import print_json, print_line, print_plans

    plans = [stage.plan for stage in planned if stage.plan is not None]
    without_plan = [stage for stage in planned if stage.plan is None]
    if as_json:
        unknown = [{"stage": stage.name, "unknown": stage.problem} for stage in without_plan]
        print_json([plan.to_json() for plan in plans] + unknown)
        return
    if plans:
        print_plans(plans)
    for stage in without_plan:
        print_line(f"{stage.name}: cannot be planned yet ({stage.problem})")
