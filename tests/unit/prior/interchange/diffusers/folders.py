"""Small priors of diffusers: their config files and weights, written without diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from priorkit.prior.interchange.diffusers.settings import to_prior_config
from priorkit.prior.model.config import build_network

CONFIG = {
    "_class_name": "PriorTransformer", "_diffusers_version": "0.42.1", "num_attention_heads": 2,
    "attention_head_dim": 8, "num_layers": 2, "embedding_dim": 12, "num_embeddings": 5, "embedding_proj_dim": 10,
}  # fmt: skip
SCHEDULER = {
    "_class_name": "UnCLIPScheduler", "clip_sample": True, "clip_sample_range": 5.0, "prediction_type": "sample",
    "num_train_timesteps": 1000, "variance_type": "fixed_small_log",
}  # fmt: skip
ECLIPSE = {**CONFIG, "additional_embeddings": 3}


def make_weights(config: dict[str, Any] = CONFIG, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under diffusers' names, with statistics of images that are neither 0 nor 1."""
    generator = torch.Generator().manual_seed(seed)
    described = to_prior_config(config, None, "config.json", "")
    shapes = {name: value.shape for name, value in build_network(described).state_dict().items()}
    weights = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    size = (1, config["embedding_dim"])
    return {
        **weights,
        "clip_mean": torch.randn(size, generator=generator),
        "clip_std": torch.rand(size, generator=generator) + 0.5,
    }


def write_model(
    folder: Path,
    config: dict[str, Any] = CONFIG,
    weights: dict[str, torch.Tensor] | None = None,
    name: str = "diffusion_pytorch_model.safetensors",
) -> dict[str, torch.Tensor]:
    """Write the folder of a model, and return its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = make_weights(config) if weights is None else weights
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(weights, folder / name, {"format": "pt"})
    return weights


def write_pipeline(
    folder: Path, scheduler: dict[str, Any] | None = SCHEDULER, scheduler_folder: str = "scheduler"
) -> dict[str, torch.Tensor]:
    """Write the folder of a pipeline, and return the prior's weights."""
    weights = write_model(folder / "prior")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyV22PriorPipeline"}))
    if scheduler is not None:
        (folder / scheduler_folder).mkdir()
        (folder / scheduler_folder / "scheduler_config.json").write_text(json.dumps(scheduler))
    return weights
