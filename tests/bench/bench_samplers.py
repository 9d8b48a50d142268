"""The demo's prior by sampler and number of steps: energy score and cosine to the true image, as a table and a plot.

Run in the ordinary environment on a finished demo, as `make bench` does. About 15 minutes on 2 cores.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import harness
import matplotlib
import numpy as np
import torch

from priorkit import load_prior, load_recipe, read_embeddings
from priorkit.prior.evaluate.metrics import mean_intervals
from priorkit.prior.evaluate.rows import EvaluatedRows
from priorkit.prior.evaluate.scoring import Scorer, ScoreTask
from priorkit.prior.evaluate.settings import EvaluateSettings
from priorkit.prior.sampling.settings import SamplerName, SampleSettings

STEPS = (2, 4, 8, 16, 32, 64, 250)


def measure(results: list[dict[str, Any]], folder: str, dtype: str, settings: EvaluateSettings) -> None:
    """The scores of every sampler at every number of steps."""
    prior = load_prior(f"{folder}/prior", dtype=dtype)
    dataset = read_embeddings(f"{folder}/embeddings", load_recipe("demo").read)
    rows = EvaluatedRows(dataset, "test", settings)
    for sampler in get_args(SamplerName):
        for steps in STEPS:
            chosen = settings.model_copy(update={"sample": SampleSettings(sampler=sampler, steps=steps)})
            scorer = Scorer(dataset, chosen, lambda weights: prior)
            blocks = [scorer(ScoreTask("test", "prior", block)).values for block in range(rows.blocks)]
            values = {
                name: np.concatenate([block[name] for block in blocks]) for name in ("energy_score", "cosine_to_image")
            }
            means = mean_intervals(values, rows.groups, settings.bootstrap_samples, settings.seed)
            scores = {name: dataclasses.asdict(estimate) for name, estimate in means.items()}
            harness.report(
                results, sampler=sampler, steps=steps, dtype=dtype, rows=len(rows.rows), draws=settings.draws, **scores
            )


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Both scores against the number of steps, with their 95% intervals."""
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "priorkit"  # the same figures give the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4))
    names = {"energy_score": "energy score (lower is better)", "cosine_to_image": "cosine to the true image"}
    for axis, (metric, label) in zip(axes, names.items(), strict=True):
        for sampler in get_args(SamplerName):
            shown = [result for result in results if result["sampler"] == sampler]
            steps = [result["steps"] for result in shown]
            axis.plot(steps, [result[metric]["value"] for result in shown], marker="o", markersize=3, label=sampler)
            axis.fill_between(
                steps, *([result[metric][end] for result in shown] for end in ("low", "high")), alpha=0.12
            )
        axis.set_xscale("log", base=2)
        axis.set_xticks(STEPS, [str(steps) for steps in STEPS])
        axis.set_xlabel("steps")
        axis.set_ylabel(label)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def page(results: list[dict[str, Any]], picture: str) -> str:
    """The text and table of the page."""
    rows, draws = results[0]["rows"], results[0]["draws"]
    flat = [
        {**result, **{f"{metric}_{end}": result[metric][end] for metric in ("energy_score", "cosine_to_image")
                      for end in ("value", "low", "high")}}
        for result in results
    ]  # fmt: skip
    form = "{{{0}_value:.4f}} [{{{0}_low:.4f}}, {{{0}_high:.4f}}]"
    columns = {
        "sampler": "{sampler}",
        "steps": "{steps}",
        "energy score (lower is better)": form.format("energy_score"),
        "cosine to the true image": form.format("cosine_to_image"),
    }
    scores = {(result["sampler"], result["steps"]): result["energy_score"] for result in results}
    fast, slow = scores["dpmsolver++", 16], scores["ddim", 64]
    return f"""
The demo's prior on {rows:,} rows of its test split, {draws} draws a caption, without guidance; 95% bootstrap
intervals over rows, computed in {results[0]["dtype"]}. `dalle2-ddim` makes one evaluation fewer than its steps.

On this prior, fewer steps score better: it was trained for minutes, and its estimates at low noise blur what the steps
there should sharpen. `dpmsolver++` at 16 steps scores {fast["value"]:.4f}, `ddim` at 64 steps {slow["value"]:.4f}
[{slow["low"]:.4f}, {slow["high"]:.4f}].

![Energy score and cosine against steps]({picture})

{harness.table(flat, columns)}
"""


def main() -> None:
    """Run all of it."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--demo", default="data/demo", help="folder of a finished demo")
    parser.add_argument("--rows", type=int, default=400, help="rows of the test split, the first in a seeded order")
    parser.add_argument("--dtype", default="bfloat16", help="of large products; float32 takes twice as long")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results: list[dict[str, Any]] = []
    measure(results, arguments.demo, arguments.dtype, EvaluateSettings(device="cpu", max_rows=arguments.rows))
    if not arguments.no_page:
        path = harness.page_path("samplers", ".svg")
        plot(results, path)
        harness.write_page("samplers", "Samplers and steps on the demo", page(results, path.name), results, ("torch",))


if __name__ == "__main__":
    main()
