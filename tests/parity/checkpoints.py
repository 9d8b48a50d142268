"""Checkpoints as DALLE2-pytorch's own trainer saved them, with what their networks return.

`make_checkpoints.py` wrote them. `checkpoints/` holds for each one `NAME.pth`, as the trainer's `save` left it;
`NAME.json`, the JSON of its training script, or of its part `prior`; and in `expected.npz`, `NAME/ema` and
`NAME/online`, `[B, D]` float32: the outputs of the averaged and of the trained network on the inputs below.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from . import seeded
from .seeded import FloatArray

FOLDER = Path(__file__).resolve().parent / "checkpoints"
BATCH = 4


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One of them."""

    name: str
    release: str
    """Of DALLE2-pytorch, whose trainer saved it."""
    prior: dict[str, Any]
    """The part `prior` of its JSON."""
    trainer: dict[str, Any]
    """Keyword arguments of `DiffusionPriorTrainer`."""
    whole_json: bool = False
    """Whether its JSON is that of a whole training run."""

    @property
    def pth(self) -> Path:
        return FOLDER / f"{self.name}.pth"

    @property
    def json(self) -> Path:
        return FOLDER / f"{self.name}.json"

    @property
    def weights(self) -> list[str]:
        """The kinds of weights that it holds."""
        return ["online", "ema"] if self.trainer.get("use_ema", True) else ["online"]

    @property
    def described(self) -> dict[str, Any]:
        """What its JSON says."""
        if not self.whole_json:
            return self.prior
        return {
            "prior": self.prior,
            "data": {
                "batch_size": 128,
                "num_data_points": 100000,
                "eval_every_seconds": 1600,
                "image_url": "img_emb",
                "meta_url": "metadata",
                "splits": {"train": 0.75, "val": 0.125, "test": 0.125},
            },
            "train": {"epochs": 5, "lr": 1.1e-4, "wd": 6.02e-2, "max_grad_norm": 0.5, "use_ema": True},
            "tracker": {"data_path": ".prior", "overwrite_data_path": True, "log": {"log_type": "console"}},
        }

    def expected(self, weights: str) -> FloatArray:
        """`[B, D]`, the output of its `ema` or `online` network on `inputs`."""
        return _expected()[f"{self.name}/{weights}"]

    def inputs(self) -> dict[str, np.ndarray[Any, Any]]:
        """`noisy_image_embed` and `text_embed` `[B, D]`, `timesteps` `[B]`, and where they are taken `token_states`
        `[B, T, D]`, the last ones zeros, and `self_cond` `[B, D]`."""
        net = self.prior["net"]
        shape = (BATCH, net["dim"])
        given: dict[str, np.ndarray[Any, Any]] = {
            "noisy_image_embed": seeded.uniform(0, f"{self.name}/noisy", shape),
            "text_embed": seeded.unit_rows(0, f"{self.name}/text", shape),
            "timesteps": np.linspace(0, self.prior["timesteps"] - 1, BATCH).astype(np.int64),
        }
        if self.prior.get("condition_on_text_encodings", True):
            states = seeded.uniform(0, f"{self.name}/states", (BATCH, net["max_text_len"], net["dim"]))
            states[0, 1:] = 0.0
            given["token_states"] = states
        if net.get("self_cond"):
            given["self_cond"] = seeded.uniform(0, f"{self.name}/estimate", shape)
        return given


CHECKPOINTS = [
    Checkpoint(
        name="warmup",
        release="1.15.6",
        prior={
            "clip": {"make": "openai", "model": "ViT-L/14"},
            "net": {
                "dim": 8, "depth": 2, "num_timesteps": 20, "max_text_len": 3, "dim_head": 4, "heads": 2, "ff_mult": 2,
                "attn_dropout": 0.05, "ff_dropout": 0.05, "normformer": True,
            },
            "image_embed_dim": 8, "image_size": 224, "timesteps": 20, "cond_drop_prob": 0.1,
        },
        trainer={"lr": 0.02, "wd": 6.02e-2, "max_grad_norm": 0.5, "warmup_steps": 4},
        whole_json=True,
    ),
    Checkpoint(
        name="cosine",
        release="1.15.6",
        prior={
            "net": {
                "dim": 8, "depth": 1, "max_text_len": 2, "dim_head": 8, "heads": 1, "ff_mult": 2, "self_cond": True,
                "num_time_embeds": 2, "num_image_embeds": 2, "num_text_embeds": 2, "norm_in": True, "norm_out": False,
                "final_proj": False, "rotary_emb": False,
            },
            "image_embed_dim": 8, "image_size": 224, "timesteps": 25, "text_cond_drop_prob": 0.2,
            "image_cond_drop_prob": 0.0, "predict_x_start": False, "predict_v": True, "beta_schedule": "linear",
            "loss_type": "huber", "image_embed_scale": 3.0,
        },
        trainer={"lr": 0.02, "wd": 0, "cosine_decay_max_steps": 100, "warmup_steps": 3},
    ),
    Checkpoint(
        name="plain",
        release="1.15.6",
        prior={
            "net": {"dim": 10, "depth": 1, "num_timesteps": 20, "max_text_len": 2, "dim_head": 4, "heads": 3},
            "image_embed_dim": 10, "image_size": 224, "timesteps": 20, "condition_on_text_encodings": False,
        },
        trainer={"lr": 0.02, "use_ema": False},
    ),
    Checkpoint(
        name="laion",
        release="0.23.10",
        prior={
            "clip": {"make": "openai", "model": "ViT-L/14", "base_model_kwargs": None},
            "net": {
                "dim": 8, "depth": 2, "max_text_len": 3, "num_timesteps": 20, "num_time_embeds": 1,
                "num_image_embeds": 1, "num_text_embeds": 1, "dim_head": 4, "heads": 2, "ff_mult": 2, "norm_in": False,
                "norm_out": True, "attn_dropout": 0.05, "ff_dropout": 0.05, "final_proj": True, "normformer": True,
                "rotary_emb": True,
            },
            "image_embed_dim": 8, "image_size": 224, "image_channels": 3, "timesteps": 20, "sample_timesteps": 16,
            "cond_drop_prob": 0.1, "loss_type": "l2", "predict_x_start": True, "beta_schedule": "cosine",
            "condition_on_text_encodings": True,
        },
        trainer={"lr": 0.02, "wd": 6.02e-2, "max_grad_norm": 0.5},
        whole_json=True,
    ),
]  # fmt: skip
"""With the warmups and optimisers that its trainer pickles, without averaged weights, and of LAION's release."""


def save_expected(expected: dict[str, FloatArray]) -> None:
    """Write `expected.npz` and the JSONs."""
    for checkpoint in CHECKPOINTS:
        checkpoint.json.write_text(json.dumps(checkpoint.described, indent=1) + "\n", encoding="utf-8")
    np.savez_compressed(FOLDER / "expected.npz", **{name: expected[name] for name in sorted(expected)})


@functools.cache
def _expected() -> dict[str, FloatArray]:
    with np.load(FOLDER / "expected.npz") as stored:
        return {name: stored[name] for name in stored.files}
