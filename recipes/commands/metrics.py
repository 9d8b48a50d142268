"""Functions that print and check evaluation metrics for the commands `evaluate`, `run` and `demo`."""

from __future__ import annotations

from typing import Any


def print_metrics(metrics: dict[str, Any]) -> None:
    """Print one table per split, with the metrics of the prior (or given predictions) and of the baselines.

    The energy score and the cosine similarity to the true image are shown with 95% confidence intervals.

    Args:
        metrics: content of `metrics.json`, which the evaluate stage writes.
    """
    from ...pipeline.display.terminal import print_line, print_table

    columns = {
        "energy_score": "energy score (lower is better)",
        "cosine_to_image": "cosine to true image",
        "cosine_to_text": "cosine to text",
        "recall_at_1": "recall@1",
        "recall_at_10": "recall@10",
    }
    if "spaces" in metrics.get("embeddings", {}):  # source and target are in different spaces
        del columns["cosine_to_text"]
        columns["cosine_to_image"] = "cosine to true target"
    names = list(columns)
    header = ("", "draws", *columns.values(), "energy distance")
    for split, scores in metrics["splits"].items():
        rows: list[tuple[str, ...]] = []
        for predictor in scores["predictors"]:
            if "broken" in predictor:
                problem = f"broken: {predictor['broken']}"
                rows.append((predictor["name"], str(predictor["draws"]), problem, *[""] * len(names)))
                continue
            values = predictor["metrics"]
            cells = [f"{values[n]['value']:.4f} [{values[n]['low']:.4f}, {values[n]['high']:.4f}]" for n in names[:2]]
            cells += [f"{values[n]['value']:.4f}" for n in names[2:]]
            cells.append(_distance(predictor["distances"]))
            rows.append((predictor["name"], str(predictor["draws"]), *cells))
        empty = [""] * (len(names) + 1)
        rows.append(("(real images against real ones)", *empty, _distance(scores["real_against_real"])))
        print_table(f"{scores['rows']:,} rows of the {split} split, 95% intervals", header, rows)
        floor = scores["real_against_real_rows"]
        fewer = f", of real images against real ones over {floor:,}" if floor < scores["distance_rows"] else ""
        print_line(
            f"draws: for each caption; recall: true image among the nearest of a gallery of {scores['gallery']:,}; "
            f"distances of distributions over {scores['distance_rows']:,} rows{fewer}"
        )


def require_sound(metrics: dict[str, Any]) -> None:
    """Check that the evaluated predictions are not broken.

    Commands call this function after printing the metrics. If the predictions are broken, the command still shows the
    metrics, then exits with an error status.

    Raises:
        InputError: the predictions are broken: not finite, or the same for every caption. The message names the split
            and the reason.
    """
    from ...pipeline.errors import InputError

    for split, scores in metrics["splits"].items():
        evaluated = scores["predictors"][0]
        if problem := evaluated.get("broken"):
            raise InputError(
                f"predictions of {evaluated['name']!r} for the {split} split are {problem}; train a "
                "prior again with a lower learning rate"
            )


def _distance(distances: dict[str, dict[str, float]]) -> str:
    """Return the text of a table cell: the energy distance, or `too few rows` if `distances` does not contain it."""
    energy_distance = distances.get("energy_distance")
    return f"{energy_distance['value']:.4f}" if energy_distance else "too few rows"
