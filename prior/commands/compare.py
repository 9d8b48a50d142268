"""The `compare` command. Heavy modules are imported only when the command runs."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from ...pipeline.commands.options import JsonOption, expand_path


def compare(
    evaluations: Annotated[
        list[str],
        typer.Argument(help="Folders of two or more evaluations; the first is compared with.", callback=expand_path),
    ],
    predictor: Annotated[
        Optional[str], typer.Option(help="Name of what to compare, such as 'ridge regression'; the prior by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare each evaluation's metrics with those of the first, with 95% confidence intervals for the differences.

    Example: priorkit compare data/evaluation runs/wider/evaluation
    """
    from ...pipeline.display.terminal import print_json, print_line, print_table, reported_errors

    with reported_errors():
        from ..evaluate.compare import compare as run_compare
        from ..evaluate.compare import to_json

        comparisons = run_compare(evaluations, predictor)
        if as_json:
            print_json(to_json(comparisons))
            return
        for split in dict.fromkeys(comparison.split for comparison in comparisons):
            score = next(c for c in comparisons if (c.split, c.metric) == (split, "energy_score"))
            header: list[str] = ["", evaluations[0]]
            for name, same_rows in zip(evaluations[1:], score.paired, strict=True):
                header += [name, "difference [95%]" if same_rows else "difference [95%], other rows"]
            rows = []
            for comparison in (one for one in comparisons if one.split == split):
                cells = [comparison.metric.replace("_", " "), f"{comparison.values[0].value:.4f}"]
                for value, difference in zip(comparison.values[1:], comparison.differences, strict=True):
                    mark = "" if difference.low <= 0 <= difference.high else " *"
                    interval = f"[{difference.low:+.4f}, {difference.high:+.4f}]{mark}"
                    cells += [f"{value.value:.4f}", f"{difference.value:+.4f} {interval}"]
                rows.append(tuple(cells))
            print_table(f"{split} split", tuple(header), rows)
        print_line("*: the interval excludes 0. Lower is better for the energy score and for distances.")
        if not all(all(comparison.paired) for comparison in comparisons if comparison.metric == "energy_score"):
            print_line(
                "Other rows: differences are those of independent means, and recall is among other images; the rows "
                "also differ in difficulty."
            )
