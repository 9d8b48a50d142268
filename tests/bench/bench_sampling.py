"""Sampling from LAION's model card configuration: ours against DALLE2-pytorch 1.15.6, and against the machine's limits.

Run in the peers' environment, as `make bench` does. Both sample with the same (random) weights, noise and 64 steps, in
turns; the results are compared. About 25 minutes on 2 cores.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import harness
import torch
import torch.nn.functional as F
from dalle2_pytorch import DiffusionPrior, DiffusionPriorNetwork

from priorkit.prior.interchange.dalle2_settings import NAMED_CONFIGS, parse_config, to_prior_config
from priorkit.prior.interchange.dalle2_weights import import_prior
from priorkit.prior.model.prior import Prior
from priorkit.prior.network.function_version import FunctionVersion
from priorkit.prior.network.linear import Linear
from priorkit.prior.network.network import PriorNetwork
from priorkit.prior.sampling.settings import SampleSettings

BATCH, STEPS, DIM = 4, 64, 768
CAPTION_TOKENS = 20
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def upstream_prior(max_text_len: int) -> DiffusionPrior:
    """The model card's prior, with random weights and without CLIP."""
    card = NAMED_CONFIGS["laion-model-card"]
    torch.manual_seed(0)
    network = DiffusionPriorNetwork(**card["net"], max_text_len=max_text_len)
    prior = DiffusionPrior(
        network, image_embed_dim=DIM, timesteps=card["timesteps"], cond_drop_prob=card["cond_drop_prob"]
    )
    return prior.eval()


def our_prior(theirs: DiffusionPrior, max_text_len: int, dtype: str) -> Prior:
    """The same prior, imported."""
    card = NAMED_CONFIGS["laion-model-card"]
    config = parse_config({**card, "net": {**card["net"], "max_text_len": max_text_len}}, "the model card")
    state = theirs.state_dict()
    return import_prior(state, to_prior_config(config, FunctionVersion.parse("1.15.6"), "it"), "it").to(dtype=dtype)


def texts(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random text embeddings `[B, D]` and token states `[B, 20, D]`."""
    generator = torch.Generator().manual_seed(1)
    return (
        F.normalize(torch.randn(batch, DIM, generator=generator), dim=-1),
        torch.randn(batch, CAPTION_TOKENS, DIM, generator=generator),
    )


def noises(batch: int) -> list[torch.Tensor]:
    """Noise for 64 steps, `[B, D]` each."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(batch, DIM, generator=generator) for _ in range(STEPS + 1)]


@contextlib.contextmanager
def given_noise(noise: list[torch.Tensor]) -> Iterator[None]:
    """Upstream draws its noise with these two functions."""

    def stream(*arguments: Any, **options: Any) -> torch.Tensor:
        return next(left)

    left = iter(noise)
    with (
        mock.patch("torch.randn", side_effect=stream),
        mock.patch("torch.randn_like", side_effect=stream),
        mock.patch("dalle2_pytorch.dalle2_pytorch.tqdm", side_effect=_no_bar),
    ):
        yield


def _no_bar(steps: Iterable[Any], **options: Any) -> Iterable[Any]:
    return steps


def compare(results: list[dict[str, Any]], max_text_len: int, rounds: int) -> None:
    """The same samples by both, in turns."""
    theirs = upstream_prior(max_text_len)
    priors = {dtype: our_prior(theirs, max_text_len, dtype) for dtype in DTYPES}
    text_embed, token_states = texts(BATCH)
    noise = noises(BATCH)
    samples: dict[str, torch.Tensor] = {}

    def upstream() -> None:
        with given_noise(noise):
            samples["upstream"] = theirs.p_sample_loop(
                (BATCH, DIM), {"text_embed": text_embed, "text_encodings": token_states}, timesteps=STEPS
            )

    def ours(dtype: str) -> Callable[[], None]:
        settings = SampleSettings(sampler="dalle2-ddim", steps=STEPS)

        def action() -> None:
            samples[dtype] = priors[dtype].draw(text_embed, token_states, 1, settings, iter(noise))[:, 0]

        return action

    for dtype in DTYPES:
        ours(dtype)()  # packs the weights
    seconds = harness.in_turns({**{dtype: ours(dtype) for dtype in DTYPES}, "upstream": upstream}, rounds)
    for dtype in DTYPES:
        difference = (samples[dtype] - samples["upstream"]).abs().max() / samples["upstream"].abs().max()
        cosine = F.cosine_similarity(samples[dtype], samples["upstream"], dim=-1).min()
        harness.report(
            results, bench="64 steps", dtype=dtype, text_tokens=max_text_len, batch=BATCH,
            ours_seconds=seconds[dtype], upstream_seconds=seconds["upstream"],
            times_faster=harness.paired_ratio(seconds["upstream"], seconds[dtype]),
            largest_relative_difference=difference.item(), smallest_cosine=cosine.item(),
        )  # fmt: skip


def product_flops(network: PriorNetwork, tokens: int, seen: float) -> float:
    """Floating-point operations of the products for `tokens` that look at `seen` positions each."""
    weights = sum(module.weight.numel() for module in network.modules() if isinstance(module, Linear))
    attention = network.attention[0]
    width = attention.heads * attention.head_width  # type: ignore[operator]
    return 2.0 * tokens * (weights + 2 * len(network.attention) * width * seen)  # type: ignore[operator]


def step_and_floor(results: list[dict[str, Any]], prior: Prior, dtype: str, max_text_len: int, rounds: int) -> None:
    """A cached step of 4 rows, as sampling makes it, against the larger of reading all weights and doing all products.

    A step is what 64 steps take more than 4 do, divided by 60; in turns with the read and the product.
    """
    text_embed, token_states = texts(BATCH)
    noise = noises(BATCH)
    values, size, few = torch.ones(2**27), 2048, 4
    left, right = (torch.randn(size, size).to(DTYPES[dtype]) for _ in range(2))

    def action(steps: int) -> Callable[[], torch.Tensor]:
        settings = SampleSettings(sampler="ddim", steps=steps)
        return lambda: prior.draw(text_embed, token_states, 1, settings, iter(noise))

    actions: dict[str, Callable[[], Any]] = {
        "many": action(STEPS),
        "few": action(few),
        "read": lambda: [values.sum() for _ in range(9)],
        "product": lambda: [left @ right for _ in range(9)],
    }
    harness.in_turns(actions, 1)
    seconds = harness.in_turns(actions, max(rounds, 9))
    step = [(many - less) / (STEPS - few) for many, less in zip(seconds["many"], seconds["few"], strict=True)]
    weight_bytes = sum(module.weight.nbytes for module in prior.network.modules() if isinstance(module, Linear))
    flops = product_flops(prior.network, tokens=3 * BATCH, seen=max_text_len + 1 + 3)
    reading = [second / 9 * weight_bytes / values.nbytes for second in seconds["read"]]
    computing = [second / 9 * flops / (2 * size**3) for second in seconds["product"]]
    floor = [max(pair) for pair in zip(reading, computing, strict=True)]
    harness.report(
        results, bench="cached step", dtype=dtype, text_tokens=max_text_len, batch=BATCH, step_seconds=step,
        read_gb_per_second=weight_bytes / harness.median(reading) / 1e9,
        matmul_gflops=flops / harness.median(computing) / 1e9,
        reading_floor_seconds=reading, flops_floor_seconds=computing,
        times_floor=harness.paired_ratio(step, floor),
    )  # fmt: skip


def guidance(results: list[dict[str, Any]], prior: Prior, dtype: str, max_text_len: int, rounds: int) -> None:
    """What guidance at scale 3 costs, the table of `dalle2` being warm."""
    text_embed, token_states = texts(BATCH)
    noise = noises(BATCH)

    def action(name: str, scale: float) -> Callable[[], torch.Tensor]:
        settings = SampleSettings(sampler="ddim", steps=STEPS, guidance=name, guidance_scale=scale)  # type: ignore[arg-type]
        return lambda: prior.draw(text_embed, token_states, 1, settings, iter(noise))

    actions = {"none": action("text", 1.0), "text": action("text", 3.0), "dalle2": action("dalle2", 3.0)}
    for run in actions.values():
        run()
    seconds = harness.in_turns(actions, rounds)
    for name in ("text", "dalle2"):
        harness.report(
            results, bench="guidance", guidance=name, dtype=dtype, text_tokens=max_text_len, batch=BATCH,
            seconds=seconds[name], without_seconds=seconds["none"],
            times_without=harness.paired_ratio(seconds[name], seconds["none"]),
        )  # fmt: skip


def best_of_8(
    results: list[dict[str, Any]], prior: Prior, dtype: str, max_text_len: int, batch: int, rounds: int
) -> None:
    """What 8 candidates cost against one, and against doing all their flops."""
    text_embed, token_states = texts(batch)
    settings = SampleSettings(sampler="ddim", steps=STEPS)

    def action(candidates: int) -> Callable[[], torch.Tensor]:
        return lambda: prior.draw(
            text_embed, token_states, candidates, settings, iter(noises(batch * candidates))
        )  # fmt: skip

    actions = {"1": action(1), "8": action(8)}
    for run in actions.values():
        run()
    seconds = harness.in_turns(actions, rounds)
    prefix = max_text_len + 1
    own = 1 + 2 * 8  # the time token is one for all candidates
    flops = product_flops(prior.network, batch * prefix, prefix / 2)
    flops += product_flops(prior.network, batch * STEPS * own, prefix + own)
    square = torch.randn(2048, 2048).to(DTYPES[dtype])
    product = harness.median(harness.in_turns({"product": lambda: square @ square}, 9)["product"])
    floor = product * flops / (2 * 2048**3)
    harness.report(
        results, bench="best of 8", dtype=dtype, text_tokens=max_text_len, batch=batch,
        of_8_seconds=seconds["8"], of_1_seconds=seconds["1"],
        times_of_1=harness.paired_ratio(seconds["8"], seconds["1"]),
        times_flops_floor=harness.median(seconds["8"]) / floor,
    )  # fmt: skip


def page(results: list[dict[str, Any]]) -> str:
    """The text and tables of the page."""

    def table(bench: str, columns: dict[str, str]) -> str:
        return harness.table([result for result in results if result["bench"] == bench], columns)

    against = table(
        "64 steps",
        {
            "text tokens": "{text_tokens}", "ours": "{dtype}", "seconds": "{ours_seconds:.2f}",
            "upstream, seconds": "{upstream_seconds:.1f}", "times faster": "{times_faster:.1f}",
            "largest relative difference": "{largest_relative_difference:.1e}",
            "smallest cosine": "{smallest_cosine:.6f}",
        },
    )  # fmt: skip
    floors = table(
        "cached step",
        {
            "dtype": "{dtype}", "step, s": "{step_seconds:.4f}", "read, GB/s": "{read_gb_per_second:.1f}",
            "matmul, GFLOP/s": "{matmul_gflops:.0f}", "reading, s": "{reading_floor_seconds:.4f}",
            "flops, s": "{flops_floor_seconds:.4f}", "times the floor": "{times_floor:.2f}",
        },
    )  # fmt: skip
    guided = table(
        "guidance",
        {
            "guidance": "{guidance}", "dtype": "{dtype}", "seconds": "{seconds:.2f}",
            "times scale 1": "{times_without:.2f}",
        },
    )  # fmt: skip
    best = table(
        "best of 8",
        {
            "dtype": "{dtype}", "batch": "{batch}", "seconds": "{of_8_seconds:.2f}",
            "times 1 candidate": "{times_of_1:.2f}", "times the flops floor": "{times_flops_floor:.2f}",
        },
    )  # fmt: skip
    longest = max(result["text_tokens"] for result in results)
    return f"""
LAION's model card configuration (width 768, depth 24, 32 heads, normformer) with random weights, a text embedding and
{CAPTION_TOKENS} token states a caption, on the CPU. 256 text tokens make 260 in all, 77 make 81. Runs are in turns;
seconds are medians, ratios medians of each round's ratio.

## 64 steps, batch {BATCH}, against dalle2-pytorch 1.15.6 in float32

The same weights, noise and sampler. At 256 text tokens one round.

{against}

## A cached step, batch {BATCH}, against its floor

A step is what 64 steps take more than 4 do, divided by 60. The floor is the larger of reading all weights once and
doing all products, attention's with them, at the rate of one of 2,048 x 2,048; both measured in turns with the steps.

{floors}

## Guidance at scale 3, batch {BATCH}, {longest} text tokens

{guided}

## Best of 8, {longest} text tokens

{best}
"""


def main() -> None:
    """Run all of it."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--text-tokens", type=int, nargs="+", default=[77, 256], help="max_text_len to compare at")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results: list[dict[str, Any]] = []
    longest = max(arguments.text_tokens)
    with torch.no_grad():
        for dtype in DTYPES:
            prior = our_prior(upstream_prior(longest), longest, dtype)
            step_and_floor(results, prior, dtype, longest, arguments.rounds)
            guidance(results, prior, dtype, longest, arguments.rounds)
            for batch in (1, BATCH):
                best_of_8(results, prior, dtype, longest, batch, arguments.rounds)
            del prior
        for max_text_len in sorted(arguments.text_tokens):
            # the longest takes upstream 6 minutes a round
            compare(results, max_text_len, 1 if max_text_len > 128 else arguments.rounds)
    if not arguments.no_page:
        packages = ("torch", "dalle2-pytorch", "numpy")
        harness.write_page("sampling", "Sampling from a prior", page(results), results, packages)


if __name__ == "__main__":
    main()
