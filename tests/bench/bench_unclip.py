"""Sampling and training of a prior of the family `prior-transformer`, against diffusers' pipeline and training script.

Both have the same random weights, texts and noise, and run in turns; the results are compared. The texts have 8 to 22
tokens. diffusers computes all 77 positions of each text in every step.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import torch
import torch.nn.functional as F
from diffusers import KandinskyV22PriorPipeline, UnCLIPScheduler

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "parity"))
from unclip import Texts, make_diffusers_prior, make_prior

from priorkit.prior.model.prior import Prior
from priorkit.prior.network.interface import Condition
from priorkit.prior.objective.diffusion import diffusion_loss
from priorkit.prior.objective.randomness import StepRandomness

DIM, STEPS, SCALE, CLIP_RANGE = 768, 25, 4.0, 5.0
CONFIG = {"num_attention_heads": 8, "attention_head_dim": 64, "num_layers": 10, "embedding_dim": DIM}
CASES = {(1, 1): 5, (4, 1): 11, (16, 1): 20, (1, 8): 14}
"""Number of texts and of candidates for each, and how many times faster sampling is to be."""
TRAIN_ROWS, TRAIN_TARGET = 32, 2.5
TEXTS = Texts(DIM)


def prompts(count: int) -> list[str]:
    """Texts with 8 to 22 tokens: `Texts` gives each letter one, and two in addition."""
    return ["abcdefghijklmnopqrst"[: 6 + 7 * index % 15] + chr(65 + index) for index in range(count)]


class Pipeline(KandinskyV22PriorPipeline):
    """The pipeline with made-up encodings of texts, and without its image encoder."""

    def _encode_prompt(self, prompt: Any, device: Any, images: int, guided: bool, negative: Any = None) -> Any:
        pairs = zip(TEXTS.padded([""] * len(prompt)), TEXTS.padded(prompt), strict=True)
        return tuple(torch.cat(pair).repeat_interleave(1, dim=0) for pair in pairs)

    def get_zero_embed(self, batch_size: int = 1, device: Any = None) -> torch.Tensor:
        return torch.zeros(batch_size, DIM)


def sampling(results: list[dict[str, Any]], rounds: int) -> None:
    """Guided samples in 25 steps."""
    theirs = make_diffusers_prior(0, **CONFIG)
    prior = make_prior(theirs, TEXTS, CLIP_RANGE)
    scheduler = UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=CLIP_RANGE)
    pipeline = Pipeline(
        prior=theirs, image_encoder=None, text_encoder=None, tokenizer=None, scheduler=scheduler, image_processor=None
    )
    pipeline.set_progress_bar_config(disable=True)
    for (texts, draws), target in CASES.items():
        repeated = [prompt for prompt in prompts(texts) for _ in range(draws)]
        samples: dict[str, torch.Tensor] = {}
        actions = {
            "ours": functools.partial(sample_ours, prior, repeated, samples),
            "diffusers": functools.partial(sample_theirs, pipeline, repeated, samples),
        }
        actions["ours"]()  # packs the weights
        seconds = harness.in_turns(actions, rounds)
        difference = (samples["ours"] - samples["diffusers"]).norm() / samples["diffusers"].norm()
        harness.report(
            results, bench="sampling", texts=texts, candidates=draws, ours_seconds=seconds["ours"],
            diffusers_seconds=seconds["diffusers"], target=target, relative_difference=difference.item(),
            times_faster=harness.paired_ratio(seconds["diffusers"], seconds["ours"]),
        )  # fmt: skip


def sample_theirs(pipeline: Pipeline, prompts: list[str], samples: dict[str, torch.Tensor]) -> None:
    """Sample with the pipeline of diffusers."""
    samples["diffusers"] = pipeline(
        prompts, num_inference_steps=STEPS, guidance_scale=SCALE, generator=torch.Generator().manual_seed(1)
    ).image_embeds


def sample_ours(prior: Prior, prompts: list[str], samples: dict[str, torch.Tensor]) -> None:
    """Sample the same with priorkit."""
    samples["ours"] = prior.sample(
        prompts, steps=STEPS, sampler="unclip", guidance_scale=SCALE, generator=torch.Generator().manual_seed(1)
    )


def training(results: list[dict[str, Any]], rounds: int) -> None:
    """A step of the training script of diffusers: forward, backward, gradient clipping and AdamW."""
    theirs = make_diffusers_prior(0, **CONFIG).train().requires_grad_(True)
    networks = {draws: make_prior(theirs, TEXTS, CLIP_RANGE) for draws in (1, 4)}
    chosen = prompts(TRAIN_ROWS)
    text, states, mask = TEXTS.padded(chosen)
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(TRAIN_ROWS, DIM, generator=generator)
    noise = torch.randn(TRAIN_ROWS, 4, DIM, generator=generator)
    timesteps = torch.randint(0, 1000, (TRAIN_ROWS, 4), generator=generator)
    scheduler = UnCLIPScheduler()

    def optimiser(network: torch.nn.Module) -> torch.optim.AdamW:
        return torch.optim.AdamW(network.parameters(), lr=1e-5)

    def update(network: torch.nn.Module, adamw: torch.optim.AdamW, loss: torch.Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()

    their_optimiser = optimiser(theirs)

    def upstream() -> None:
        target = (images - theirs.clip_mean) / theirs.clip_std
        noisy = scheduler.add_noise(target, noise[:, 0], timesteps[:, 0])
        output = theirs(noisy, timesteps[:, 0], text, states, mask).predicted_image_embedding
        update(theirs, their_optimiser, F.mse_loss(output, target))

    def ours(draws: int) -> Callable[[], None]:
        prior = networks[draws]
        network = prior.network.train().requires_grad_(True)
        adamw = optimiser(network)
        no_drop = torch.zeros(TRAIN_ROWS, draws, dtype=torch.bool)
        random = StepRandomness(noise[:, :draws], timesteps[:, :draws], no_drop[:, 0], no_drop, no_drop)
        condition = Condition(text, states * mask[..., None])

        def action() -> None:
            loss = diffusion_loss(
                network, prior.schedule, prior.config.diffusion, prior.normaliser, images, condition, random
            )
            update(network, adamw, loss.mean())

        return action

    actions = {"diffusers": upstream, "ours": ours(1), "ours, 4 draws": ours(4)}
    for action in actions.values():
        action()
    seconds = harness.in_turns(actions, rounds)
    for name in ("ours", "ours, 4 draws"):
        harness.report(
            results, bench="training step", rows=TRAIN_ROWS, name=name, ours_seconds=seconds[name],
            diffusers_seconds=seconds["diffusers"], target=TRAIN_TARGET,
            captions_times_faster=harness.paired_ratio(seconds["diffusers"], seconds[name]),
            draws_per_second=TRAIN_ROWS * (4 if "4" in name else 1) / harness.median(seconds[name]),
        )  # fmt: skip


def main() -> None:
    """Print the results, and write a page with them."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--only", choices=["sampling", "training"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results: list[dict[str, Any]] = []
    if arguments.only != "training":
        sampling(results, arguments.rounds)
    if arguments.only != "sampling":
        training(results, arguments.rounds)
    if arguments.no_page:
        return
    sampled = [each for each in results if each["bench"] == "sampling"]
    trained = [each for each in results if each["bench"] == "training step"]
    body = "\n\n".join(
        [
            "Guided samples in 25 steps (scale 4), against `KandinskyV22PriorPipeline`:",
            harness.table(
                sampled,
                {
                    "texts": "{texts}", "candidates": "{candidates}", "diffusers, s": "{diffusers_seconds:.2f}",
                    "priorkit, s": "{ours_seconds:.3f}", "times faster": "{times_faster:.1f}", "target": "{target}",
                    "relative difference": "{relative_difference:.1e}",
                },
            ),
            f"A training step of {TRAIN_ROWS} captions in float32, against the loop of diffusers' training script:",
            harness.table(
                trained,
                {
                    "priorkit": "{name}", "diffusers, s": "{diffusers_seconds:.2f}",
                    "priorkit, s": "{ours_seconds:.3f}",
                    "times the captions per second": "{captions_times_faster:.2f}", "target": "{target}",
                    "draws per second": "{draws_per_second:.0f}",
                },
            ),
        ]
    )  # fmt: skip
    harness.write_page("unclip", "Priors of diffusers", body, results, ["torch", "diffusers"])


if __name__ == "__main__":
    main()
