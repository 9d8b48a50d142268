"""Time to quality: how soon each trainer reaches a validation loss, on the demo's embeddings.

Ours and DALLE2-pytorch 1.15.6's own trainer train the same network on the same batches, in turns of some seconds, and
one evaluator scores the averaged weights of both after each turn. What counts is the time spent in training. Run in
the peers' environment after `priorkit demo`, as `make bench` does. About 25 minutes on 2 cores.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import matplotlib
import numpy as np
import torch
from dalle2_pytorch import DiffusionPrior, DiffusionPriorNetwork, DiffusionPriorTrainer

from priorkit.pipeline.compute.device import resolve
from priorkit.pipeline.read.batches import BatchStream, Columns, TrainBatch
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.prior.evaluate.rows import EvaluatedRows
from priorkit.prior.evaluate.scoring import timestep_losses
from priorkit.prior.evaluate.settings import EvaluateSettings
from priorkit.prior.interchange.dalle2_weights import import_prior
from priorkit.prior.model.config import PriorConfig
from priorkit.prior.model.prior import Prior
from priorkit.prior.network.interface import Condition
from priorkit.prior.network.settings import NetworkSettings
from priorkit.prior.train.ranks import Ranks
from priorkit.prior.train.settings import OptimiserSettings, TrainSettings
from priorkit.prior.train.step import Learner
from priorkit.prior.train.text import stored_text, with_text
from priorkit.recipes.recipe import load_recipe

TOKENS, DEPTH, HEADS, BATCH, DRAWS, DTYPE = 77, 6, 8, 16, 4, "bfloat16"
OPTIMISER = OptimiserSettings(learning_rate=3e-4, decay="constant", warmup_steps=0, ema_decay=0.995)
TURN_SECONDS = 30.0
JUDGED_ROWS = 128


def padded_text(batch: TrainBatch) -> Condition:
    """Token states with zeros behind them, as wide as the network: upstream takes no others."""
    text = stored_text(batch)
    assert text.token_states is not None
    missing = text.text_embed.shape[1] - text.token_states.shape[2]
    return Condition(text.text_embed.float(), torch.nn.functional.pad(text.token_states.float(), (0, missing)))


class Ours:
    """Our step, in the type and with the draws that are asked for."""

    def __init__(self, config: PriorConfig, settings: TrainSettings) -> None:
        self._config, self._learner, self._steps = (
            config,
            Learner(config, settings, Ranks.current(torch.device("cpu"))),
            0,
        )

    def step(self, batch: TrainBatch) -> None:
        """Train on a batch."""
        losses = self._learner.backward(self._steps, batch, padded_text(batch))
        self._learner.reduce(self._steps, batch, losses, False)
        self._learner.update(self._steps, batch)
        self._steps += 1

    def prior(self) -> Prior:
        """The averaged weights."""
        return Prior(self._config, self._learner.average, self._learner.normaliser)


class Upstream:
    """DALLE2-pytorch's trainer, with the same optimiser settings and the same decay of the averaged weights."""

    def __init__(self, config: PriorConfig) -> None:
        torch.manual_seed(0)
        self._config, dim = config, config.embed_dim
        network = DiffusionPriorNetwork(dim=dim, depth=DEPTH, heads=HEADS, dim_head=64, max_text_len=TOKENS)
        prior = DiffusionPrior(
            network, image_embed_dim=dim, timesteps=1000, cond_drop_prob=config.diffusion.text_drop,
            condition_on_text_encodings=True,
        )  # fmt: skip
        self._trainer = DiffusionPriorTrainer(
            prior, lr=OPTIMISER.learning_rate, wd=OPTIMISER.weight_decay, max_grad_norm=OPTIMISER.max_grad_norm,
            accelerator_cpu=True, ema_beta=OPTIMISER.ema_decay, ema_update_after_step=0, ema_update_every=1,
        )  # fmt: skip

    def step(self, batch: TrainBatch) -> None:
        """Train on a batch."""
        text = padded_text(batch)
        image = torch.from_numpy(batch.image_embed).float()
        self._trainer(text_embed=text.text_embed, image_embed=image, text_encodings=text.token_states)
        self._trainer.update()

    def prior(self) -> Prior:
        """The averaged weights, as a prior of ours."""
        return import_prior(self._trainer.ema_diffusion_prior.ema_model.state_dict(), self._config, "upstream")


class Judge:
    """The evaluator's loss by timestep of held-out rows, mean over timesteps and rows, with the same noise always."""

    def __init__(self, dataset: EmbeddingDataset, columns: Columns) -> None:
        self._settings = resolve(EvaluateSettings(max_rows=JUDGED_ROWS), "evaluate")
        rows = EvaluatedRows(dataset, "test", self._settings)
        found = dataset.take(rows.rows, columns.max_text_len)
        batch = TrainBatch(rows.rows, found.image_embed, found.text_embed, found.token_states, None, 0, len(rows.rows))
        self._batch, self._ids = with_text(batch, padded_text), rows.ids

    def __call__(self, prior: Prior) -> float:
        """The loss."""
        prior.network.eval()
        losses = timestep_losses(prior, self._batch, self._ids, self._settings)
        return float(np.mean(list(losses.values())))


def first_time(curve: list[dict[str, float]], loss: float) -> float | None:
    """Seconds of training after which a curve is at a loss or below."""
    return next((point["seconds"] for point in curve if point["loss"] <= loss), None)


def race(trainers: dict[str, Any], dataset: EmbeddingDataset, columns: Columns, seconds: float) -> dict[str, Any]:
    """Curves of loss by seconds of training and captions seen."""
    judge = Judge(dataset, columns)
    streams: dict[str, Iterator[TrainBatch]] = {
        name: BatchStream(dataset, "train", batch_size=BATCH, seed=0, columns=columns).batches() for name in trainers
    }
    spent, seen = dict.fromkeys(trainers, 0.0), dict.fromkeys(trainers, 0)
    curves: dict[str, list[dict[str, float]]] = {name: [] for name in trainers}
    while min(spent.values()) < seconds:
        for name, trainer in trainers.items():
            start = time.perf_counter()
            while time.perf_counter() - start < TURN_SECONDS:
                batch = next(streams[name])
                trainer.step(batch)
                seen[name] += batch.global_rows
            spent[name] += time.perf_counter() - start
            point = {"seconds": spent[name], "captions": seen[name], "loss": judge(trainer.prior())}
            curves[name].append(point)
            print(name, point, flush=True)
    return curves


def plot(curves: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Loss against time and against captions seen."""
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "priorkit"  # the same figures give the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, (key, label) in zip(
        axes, {"seconds": "seconds of training", "captions": "captions seen"}.items(), strict=True
    ):
        for name, curve in curves.items():
            axis.plot([point[key] for point in curve], [point["loss"] for point in curve], label=name)
        axis.set_xlabel(label)
        axis.set_yscale("log")
    axes[0].set_ylabel("validation loss")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run it."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--demo", default="data/demo", help="folder of the demo")
    parser.add_argument("--seconds", type=float, default=600, help="of training, for each")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recipe = load_recipe("demo")
    dataset = EmbeddingDataset(f"{arguments.demo}/embeddings", ReadSettings(**recipe.read.splits()))
    network = NetworkSettings(width=dataset.embed_dim, depth=DEPTH, heads=HEADS, max_text_len=TOKENS)
    base = TrainSettings(
        network=network,
        optimiser=OPTIMISER,
        batch_size=BATCH,
        noise_draws=DRAWS,
        dtype=DTYPE,
        threads=arguments.threads,
    )
    config = PriorConfig(
        embed_dim=dataset.embed_dim, token_width=dataset.embed_dim, network=network, diffusion=base.diffusion, clip={},
        clip_settings={},
    )  # fmt: skip
    ours = f"priorkit, K={DRAWS}, {DTYPE}"
    trainers = {ours: Ours(config, resolve(base, "train")), "dalle2-pytorch": Upstream(config)}
    columns = Columns(text_embed=True, max_text_len=TOKENS, captions=False)
    curves = race(trainers, dataset, columns, arguments.seconds)
    results: list[dict[str, Any]] = []
    best = min(point["loss"] for point in curves["dalle2-pytorch"])
    for name, curve in curves.items():
        harness.report(
            results, trainer=name, loss_to_reach=best, seconds_to_it=first_time(curve, best),
            best_loss=min(point["loss"] for point in curve),
            captions_per_second=curve[-1]["captions"] / curve[-1]["seconds"],
            curve=[[round(point["seconds"], 1), point["captions"], round(point["loss"], 5)] for point in curve],
        )  # fmt: skip
    if arguments.no_page:
        return
    figure = harness.page_path("time-to-quality", ".svg")
    plot(curves, figure)
    columns_shown = {
        "trainer": "{trainer}", "seconds to that loss": "{seconds_to_it:.0f}", "best loss": "{best_loss:.4f}",
        "captions/s": "{captions_per_second:.0f}",
    }  # fmt: skip
    table = harness.table([{k: v for k, v in result.items() if k != "curve"} for result in results], columns_shown)
    body = f"""
The network is the same for both: width {dataset.embed_dim}, depth {DEPTH}, {HEADS} heads of 64, {TOKENS} token states
as of the model card's CLIP (the demo's captions have 20 at most; the rest is learned padding, a part of the function),
with zeros behind them to the width that dalle2-pytorch needs. So are batch {BATCH}, AdamW at {OPTIMISER.learning_rate},
clipping, text drop 0.1, averaged weights with decay {OPTIMISER.ema_decay} at each step, and the batches, which
dalle2-pytorch alone would not shuffle. It computes in float32 (the `amp` of its training script never takes effect),
priorkit in {DTYPE} with K = {DRAWS} noise draws for each caption. The validation loss is the evaluator's in float32, of
the averaged weights, on {JUDGED_ROWS} rows of the test split with the same noise always. Seconds are those of training,
in turns of {TURN_SECONDS:.0f}.

The loss to reach is the best of dalle2-pytorch in {arguments.seconds:.0f} seconds: {best:.4f}.

{table}

![Loss by time and by captions seen]({figure.name})
"""
    harness.write_page("time-to-quality", "Time to quality", body, results, ("torch", "dalle2-pytorch", "numpy"))


if __name__ == "__main__":
    main()
