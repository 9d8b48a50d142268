"""The `priorkit evaluate` command. Heavy dependencies are imported only when it runs."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from ...pipeline.commands.options import (
    DryRunOption,
    JsonOption,
    LimitOption,
    OverwriteOption,
    SetOption,
    WorkersOption,
    expand_path,
    show_plan,
    show_result,
    worker_overrides,
)
from ...prior.commands.options import CheckpointConfigOption, FunctionOption
from .metrics import print_metrics, require_sound


def evaluate(
    prior: Annotated[
        str,
        typer.Argument(
            help="Folder of a prior, a .pth of dalle2-pytorch, or a .npy of predictions.", callback=expand_path
        ),
    ] = "data/prior",
    embeddings: Annotated[
        str, typer.Option(help="Folder of embedding shards.", callback=expand_path)
    ] = "data/embeddings",
    evaluation: Annotated[
        str, typer.Option(help="Folder to write metrics to.", callback=expand_path)
    ] = "data/evaluation",
    recipe: Annotated[
        Optional[str],
        typer.Option(
            help="Recipe whose `evaluate`, `read` and `compute` apply; not its folders.", callback=expand_path
        ),
    ] = None,
    config: CheckpointConfigOption = None,
    weights: Annotated[
        Optional[str], typer.Option(help="Weights to evaluate: ema, online or best.", show_default="evaluate.weights")
    ] = None,
    function_version: FunctionOption = None,
    workers: WorkersOption = None,
    settings: SetOption = None,
    limit: LimitOption = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a prior and baselines on rows that the prior was not trained on.

    Example: priorkit evaluate data/prior --set evaluate.draws=16
    """
    from ...pipeline.display.terminal import print_json, print_warning, progress_bar, reported_errors

    with reported_errors():
        from ...prior.evaluate.folder import read_metrics
        from ...prior.evaluate.stage import evaluate as run_evaluate
        from ...prior.evaluate.stage import plan_evaluate
        from ...prior.evaluate.subject import TRAINING_ROWS_WARNINGS
        from ..recipe import load_recipe

        overrides = [*(settings or []), *worker_overrides(workers)]
        overrides += [] if weights is None else [f"evaluate.weights=[{weights}]"]
        chosen = load_recipe(recipe, overrides, ("evaluate", "read", "compute"))
        # None selects the `read` settings recorded with the prior, if any
        read = chosen.read if "read" in chosen.model_fields_set else None
        if dry_run:
            plan = plan_evaluate(
                prior, embeddings, evaluation, chosen.evaluate, read, chosen.compute,
                config=config, function_version=function_version, limit=limit, overwrite=overwrite,
            )  # fmt: skip
            show_plan(plan, as_json)
            return
        with progress_bar("evaluate", "rows", quiet=as_json) as progress:
            result = run_evaluate(
                prior, embeddings, evaluation, chosen.evaluate, read, chosen.compute,
                config=config, function_version=function_version, limit=limit, overwrite=overwrite, progress=progress,
            )  # fmt: skip
        metrics = read_metrics(evaluation)
        if as_json:
            print_json({**result.to_json(), "metrics": metrics})
        else:
            show_result(result, as_json)
            print_metrics(metrics)
        if said := TRAINING_ROWS_WARNINGS.get(metrics["subject"]["training_rows"]):
            print_warning(f"{prior}: {said}")
        require_sound(metrics)
