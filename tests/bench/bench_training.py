"""A training step: ours against DALLE2-pytorch 1.15.6's own trainer, and against the machine's limit.

Run in the peers' environment, as `make bench` does. Both take whole steps, optimiser and averaged weights included, in
turns. About 40 minutes on 2 cores.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import harness
import torch
import torch.nn.functional as F
from dalle2_pytorch import DiffusionPrior, DiffusionPriorNetwork, DiffusionPriorTrainer

from priorkit.prior.model.config import PriorConfig, build_network, build_normaliser
from priorkit.prior.network.interface import Condition
from priorkit.prior.network.linear import Linear
from priorkit.prior.network.network import PriorNetwork
from priorkit.prior.network.settings import NetworkSettings
from priorkit.prior.objective.diffusion import diffusion_loss
from priorkit.prior.objective.randomness import step_randomness
from priorkit.prior.objective.schedule import noise_schedule
from priorkit.prior.objective.settings import DiffusionSettings
from priorkit.prior.train.optim import build_optimiser, update_ema
from priorkit.prior.train.settings import OptimiserSettings

BATCH, DIM, DEPTH, HEADS = 16, 768, 12, 12
DIFFUSION = DiffusionSettings(text_drop=0.1)
OPTIMISER = OptimiserSettings()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MATMUL = 2048


def batch_of(text_tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Random text embeddings and image embeddings `[B, D]`, and token states `[B, T, D]`."""
    generator = torch.Generator().manual_seed(1)
    text, image = (F.normalize(torch.randn(BATCH, DIM, generator=generator), dim=-1) for _ in range(2))
    states = torch.randn(BATCH, text_tokens, DIM, generator=generator) if text_tokens else None
    return text, image, states


def upstream_step(max_text_len: int, text_tokens: int, dtype: str) -> Callable[[], None]:
    """A step of upstream's trainer: its forward and backward pass, and its update."""
    torch.manual_seed(0)
    network = DiffusionPriorNetwork(dim=DIM, depth=DEPTH, heads=HEADS, dim_head=64, max_text_len=max_text_len)
    prior = DiffusionPrior(
        network, image_embed_dim=DIM, timesteps=1000, cond_drop_prob=DIFFUSION.text_drop,
        condition_on_text_encodings=text_tokens > 0,
    )  # fmt: skip
    trainer = DiffusionPriorTrainer(
        prior, lr=OPTIMISER.learning_rate, wd=OPTIMISER.weight_decay, max_grad_norm=OPTIMISER.max_grad_norm,
        accelerator_cpu=True, accelerator_mixed_precision="bf16" if dtype == "bfloat16" else "no",
    )  # fmt: skip
    text, image, states = batch_of(text_tokens)
    given = {} if states is None else {"text_encodings": states}

    def step() -> None:
        trainer(text_embed=text, image_embed=image.clone(), **given)  # it scales the image embedding in place
        trainer.update()

    return step


def our_network(text_tokens: int) -> tuple[PriorNetwork, PriorConfig]:
    """The same configuration."""
    settings = NetworkSettings(width=DIM, depth=DEPTH, heads=HEADS, max_text_len=text_tokens)
    width = DIM if text_tokens else None
    config = PriorConfig(
        embed_dim=DIM, token_width=width, network=settings, diffusion=DIFFUSION, clip={}, clip_settings={}
    )
    torch.manual_seed(0)
    return build_network(config).train(), config


def our_step(text_tokens: int, draws: int, dtype: str) -> Callable[[], None]:
    """A step as the training loop takes it."""
    network, config = our_network(text_tokens)
    average = copy.deepcopy(network).requires_grad_(False)
    optimiser, normaliser = build_optimiser(network, OPTIMISER), build_normaliser(config)
    schedule = noise_schedule(DIFFUSION.noise_schedule, DIFFUSION.timesteps)
    text, image, states = batch_of(text_tokens)
    done = 0

    def step() -> None:
        nonlocal done
        random = step_randomness(
            seed=0, step=done, first=0, rows=BATCH, draws=draws, embed_dim=DIM, diffusion=DIFFUSION
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            losses = diffusion_loss(network, schedule, DIFFUSION, normaliser, image, Condition(text, states), random)
        optimiser.zero_grad(set_to_none=True)
        losses.mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), OPTIMISER.max_grad_norm)
        optimiser.step()
        update_ema(average, network, OPTIMISER.ema_decay, done)
        done += 1

    return step


def step_flops(text_tokens: int, draws: int) -> float:
    """Floating-point operations that a step needs: 2 for each multiplication and addition of a product.

    The backward pass is twice the forward. Of attention what the causal mask lets through is counted. Not counted are
    what is dropped, the last layer of the prefix behind its keys and values, and all that is no product.
    """
    network, _ = our_network(text_tokens)
    weights = {name: module.weight.numel() for name, module in network.named_modules() if isinstance(module, Linear)}
    layers = sum(count for name, count in weights.items() if name != "to_embed") / DEPTH
    keys_values = DIM * 2 * 64
    time = sum(value.numel() for value in network.to_time.parameters())
    prefix, suffix = text_tokens + 1, 3
    tokens = BATCH * prefix * ((DEPTH - 1) * layers + keys_values) + BATCH * draws * suffix * DEPTH * layers
    outside = BATCH * draws * (weights["to_embed"] + time)
    width = HEADS * 64
    seen = BATCH * prefix * (DEPTH - 1) * (prefix + 3) / 2
    seen += BATCH * draws * suffix * DEPTH * (prefix + 1 + (suffix + 1) / 2)
    return 3 * 2 * (tokens + outside + 2 * width * seen)


def products(dtype: str) -> dict[str, Callable[[], Any]]:
    """Large products by each library that torch has: the faster is the machine's limit."""
    from priorkit.pipeline.compute.onednn import packed_product

    left, right = (torch.randn(MATMUL, MATMUL).to(DTYPES[dtype]) for _ in range(2))
    with torch.no_grad():
        return {
            "matmul": lambda: [left @ right for _ in range(4)],
            "onednn": lambda: [packed_product(left, right) for _ in range(4)],
        }


def race(results: list[dict[str, Any]], text_tokens: int, draws: int, upstream: dict[str, int], rounds: int) -> None:
    """Steps of ours in both types and of upstream at each of its lengths, in turns with large products."""
    actions: dict[str, Callable[[], Any]] = {}
    for dtype in DTYPES:
        actions |= {f"{name} {dtype}": action for name, action in products(dtype).items()}
        actions[f"ours {dtype}"] = our_step(text_tokens, draws, dtype)
    actions |= {name: upstream_step(length, text_tokens, "float32") for name, length in upstream.items()}
    harness.in_turns(actions, 1)
    seconds = harness.in_turns(actions, rounds)
    flops = step_flops(text_tokens, draws)
    for dtype in DTYPES:
        limit = min((seconds[f"{name} {dtype}"] for name in products(dtype)), key=harness.median)
        ours = seconds[f"ours {dtype}"]
        ideal = [second / 4 * flops / (2 * MATMUL**3) for second in limit]
        harness.report(
            results, bench="limit", text_tokens=text_tokens, draws=draws, dtype=dtype, step_seconds=ours,
            step_tflop=flops / 1e12, matmul_gflops=flops / harness.median(ideal) / 1e9,
            step_gflops=flops / harness.median(ours) / 1e9, share=harness.paired_ratio(ideal, ours),
        )  # fmt: skip
        for name in upstream:
            times = harness.paired_ratio(seconds[name], ours)
            harness.report(
                results, bench="upstream", text_tokens=text_tokens, draws=draws, dtype=dtype, upstream=name,
                step_seconds=ours, upstream_seconds=seconds[name], captions_ratio=times, draws_ratio=draws * times,
                captions_per_second=BATCH / harness.median(ours),
                draws_per_second=draws * BATCH / harness.median(ours),
                upstream_draws_per_second=BATCH / harness.median(seconds[name]),
            )  # fmt: skip


def page(results: list[dict[str, Any]]) -> str:
    """The text and tables of the page."""

    def table(bench: str, columns: dict[str, str]) -> str:
        return harness.table([result for result in results if result["bench"] == bench], columns)

    against = table(
        "upstream",
        {
            "token states": "{text_tokens}", "K": "{draws}", "ours": "{dtype}", "upstream": "{upstream}",
            "step, s": "{step_seconds:.2f}", "upstream, s": "{upstream_seconds:.2f}",
            "draws/s": "{draws_per_second:.1f}", "upstream, draws/s": "{upstream_draws_per_second:.1f}",
            "times the draws/s": "{draws_ratio:.2f}", "times the captions/s": "{captions_ratio:.2f}",
        },
    )  # fmt: skip
    limits = table(
        "limit",
        {
            "token states": "{text_tokens}", "K": "{draws}", "dtype": "{dtype}", "step, TFLOP": "{step_tflop:.3f}",
            "step, GFLOP/s": "{step_gflops:.0f}", "large product, GFLOP/s": "{matmul_gflops:.0f}",
            "share": "{share:.2f}",
        },
    )  # fmt: skip
    return f"""
Width {DIM}, depth {DEPTH}, {HEADS} heads of 64, batch {BATCH}, random weights and embeddings, text drop 0.1, on the
CPU. Every step is a whole one: randomness, loss, gradient, clipping, AdamW, averaged weights (upstream's every tenth
step, ours every step). Steps are in turns; seconds are medians, ratios medians of each round's ratio.

## Against dalle2-pytorch 1.15.6's `DiffusionPriorTrainer` in float32

K is `noise_draws`. Draws of one caption are correlated: captions are what "samples seen" counts. Without token states
upstream pads to 260 tokens by default, of which 256 are learned constants; ours has 4. That is another function, which
upstream defaults to, and no measure of how fast the same is computed: upstream with `max_text_len=0` is.

{against}

## Against the machine

A step's operations are those of its products: 2 for each multiplication and addition, the backward pass twice the
forward, attention with what its mask lets through. The limit is a product of {MATMUL} x {MATMUL} by the faster of
torch's two libraries, in turns with the steps.

{limits}
"""


def main() -> None:
    """Run all of it."""
    arguments = harness.parser(__doc__ or "").parse_args()
    torch.set_num_threads(arguments.threads)
    results: list[dict[str, Any]] = []
    race(results, 77, 4, {"77 tokens": 77}, arguments.rounds)
    for draws in (1, 4):
        race(results, 0, draws, {"256 padding tokens": 256, "max_text_len=0": 0}, arguments.rounds)
    if not arguments.no_page:
        packages = ("torch", "dalle2-pytorch", "numpy")
        harness.write_page("training", "Speed of a training step", page(results), results, packages)


if __name__ == "__main__":
    main()
