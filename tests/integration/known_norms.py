"""Embeddings of varying norms whose distribution for each caption is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from priorkit.pipeline.contract.commit import open_stage
from priorkit.pipeline.contract.empty_inputs import EmptyInputs, write_empty_inputs
from priorkit.pipeline.contract.manifest import Manifest, fingerprint
from priorkit.pipeline.contract.storage import Store
from priorkit.prior.model.prior import Prior
from priorkit.prior.network.prior_transformer.settings import PriorTransformerSettings
from priorkit.prior.objective.settings import DiffusionSettings
from priorkit.prior.train.settings import OptimiserSettings, TrainSettings

from .synthetic import unit, write_shard

D, KINDS = 4, 4
"""Embedding size, and number of kinds of captions."""
ANGULAR = 0.3
"""Norm of the noise that is added to the unit mean of a kind before its directions are normalised."""
MEANS = np.linspace(10, 20, KINDS)
"""Mean norm of the images of each kind."""
SPREADS = MEANS * np.linspace(0.20, 0.15, KINDS)
"""Standard deviation of the norms of the images of each kind; norms are normal and independent of directions."""

KNOWN_NORMS = TrainSettings(
    network=PriorTransformerSettings(num_attention_heads=4, attention_head_dim=8, num_layers=2, num_embeddings=1),
    diffusion=DiffusionSettings(normaliser="clip_stats", text_drop=0),
    optimiser=OptimiserSettings(
        learning_rate=3e-3, warmup_steps=50, weight_decay=0.01, max_grad_norm=1.0, ema_decay=0.995
    ),
    steps=1500, batch_size=256, noise_draws=2, device="cpu", threads=1, validate_every=1500, checkpoint_every=1500,
)  # fmt: skip
"""A training of one to two minutes."""
SAMPLES = 1000
"""Number of samples for each kind, of which the spread is known to 2%."""


def conditions() -> tuple[np.ndarray, np.ndarray]:
    """Text embeddings `[KINDS, D]` that are not normalised, and token states `[KINDS, D]`, one for each kind."""
    random = np.random.default_rng(7)
    return 10 * unit(random.standard_normal((KINDS, D))), random.standard_normal((KINDS, D))


def images(kinds: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit image embeddings `[N, D]` and their norms `[N]` for kinds of captions `[N]`."""
    means = unit(np.random.default_rng(8).standard_normal((KINDS, D)))
    random = np.random.default_rng(seed)
    directions = unit(means[kinds] + ANGULAR / np.sqrt(D) * random.standard_normal((len(kinds), D)))
    return directions, MEANS[kinds] + SPREADS[kinds] * random.standard_normal(len(kinds))


def write_known_norms(folder: Path, rows: int) -> Path:
    """A folder as `embed` writes it, whose rows are of random kinds."""
    kinds = np.random.default_rng(9).integers(0, KINDS, rows)
    image, norms = images(kinds, seed=10)
    text, states = conditions()
    source = {"model": "known norms", "pretrained": "none"}
    identity = {
        "source": source, "weights_sha256": fingerprint("known norms"), "dtype": "float32", "embed_dim": D,
        "token_width": D,
    }  # fmt: skip
    empty = EmptyInputs(np.zeros(D, np.float32), np.ones(D, np.float32), np.ones((1, D), np.float32))
    with open_stage(Store(str(folder)), Manifest("embed", {"token_states": True}, input={})) as stage:
        stage.describe(clip=identity, clip_settings=source, **write_empty_inputs(stage.store, empty))
        text_norm = np.full(rows, 10, np.float32)
        write_shard(
            stage, 0, np.arange(rows), np.arange(rows), image, unit(text)[kinds], states[kinds], np.ones(rows, int),
            {"image_norm": norms.astype(np.float32), "text_norm": text_norm},
        )  # fmt: skip
        stage.finish()
    return folder


def norm_errors(prior: Prior) -> tuple[float, float]:
    """Errors of the mean and of the standard deviation of the norms of samples, as fractions, averaged over kinds."""
    text, states = (torch.from_numpy(values).float().repeat_interleave(SAMPLES, 0) for values in conditions())
    drawn = prior.sample(text_embed=text, token_states=states[:, None], steps=64, norm="raw")
    norms = drawn.norm(dim=-1).numpy().reshape(KINDS, SAMPLES)
    errors = [np.abs(found / true - 1).mean() for found, true in ((norms.mean(1), MEANS), (norms.std(1), SPREADS))]
    return float(errors[0]), float(errors[1])
