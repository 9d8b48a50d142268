"""The command that evaluates, and how metrics are shown. Heavy imports happen when it runs."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from ...pipeline.commands.stages import (
    DryRunOption,
    JsonOption,
    LimitOption,
    OverwriteOption,
    SetOption,
    WorkersOption,
    show_plan,
    show_result,
    worker_overrides,
)
from ...prior.commands.options import CheckpointConfigOption, FunctionOption


def evaluate(
    prior: Annotated[
        str, typer.Argument(help="Folder of a prior, a .pth of dalle2-pytorch, or a .npy of predictions.")
    ] = "data/prior",
    embeddings: Annotated[str, typer.Option(help="Folder of embedding shards.")] = "data/embeddings",
    evaluation: Annotated[str, typer.Option(help="Folder to write metrics to.")] = "data/evaluation",
    recipe: Annotated[
        Optional[str], typer.Option(help="Recipe whose `evaluate`, `read` and `compute` apply; not its folders.")
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
    """Evaluate a prior, beside baselines, on rows it was not trained on.

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
        # a prior that was trained here brings its own, unless told otherwise
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


def print_metrics(metrics: dict[str, Any]) -> None:
    """The metrics of a prior beside the baselines, with 95% intervals, split by split."""
    from ...pipeline.display.terminal import print_line, print_table

    names = ("energy_score", "cosine_to_image", "cosine_to_text", "recall_at_1", "recall_at_10")
    header = (
        "", "draws", "energy score (lower is better)", "cosine to true image", "cosine to text", "recall@1",
        "recall@10", "energy distance",
    )  # fmt: skip
    for split, found in metrics["splits"].items():
        rows: list[tuple[str, ...]] = []
        for predictor in found["predictors"]:
            if "broken" in predictor:
                rows.append((predictor["name"], str(predictor["draws"]), f"broken: {predictor['broken']}", *[""] * 5))
                continue
            values = predictor["metrics"]
            cells = [f"{values[n]['value']:.4f} [{values[n]['low']:.4f}, {values[n]['high']:.4f}]" for n in names[:2]]
            cells += [f"{values[n]['value']:.4f}" for n in names[2:]]
            cells.append(_distance(predictor["distances"]))
            rows.append((predictor["name"], str(predictor["draws"]), *cells))
        rows.append(("(real images against real ones)", *[""] * 6, _distance(found["real_against_real"])))
        print_table(f"{found['rows']:,} rows of the {split} split, 95% intervals", header, rows)
        floor = found["real_against_real_rows"]
        fewer = f", of real images against real ones over {floor:,}" if floor < found["distance_rows"] else ""
        print_line(
            f"draws: for each caption; recall: true image among the nearest of a gallery of {found['gallery']:,}; "
            f"distances of distributions over {found['distance_rows']:,} rows{fewer}"
        )


def require_sound(metrics: dict[str, Any]) -> None:
    """InputError, so that a script stops, if what was evaluated cannot be scored."""
    from ...pipeline.errors import InputError

    for split, found in metrics["splits"].items():
        if problem := found["predictors"][0].get("broken"):
            raise InputError(
                f"predictions of {found['predictors'][0]['name']!r} for the {split} split are {problem}; train a "
                "prior again with a lower learning rate"
            )


def _distance(distances: dict[str, dict[str, float]]) -> str:
    found = distances.get("energy_distance")
    return f"{found['value']:.4f}" if found else "too few rows"
