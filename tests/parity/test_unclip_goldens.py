"""Priors of diffusers against stored outputs of diffusers, which is not needed here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from priorkit import load_prior
from priorkit.pipeline.contract.empty_inputs import EmptyInputs
from priorkit.prior.model.prior import Prior
from priorkit.prior.network.interface import DrawnTexts

FILE = Path(__file__).resolve().parent / "goldens/unclip.safetensors"
STEPS, SCALE = 7, 4.0
with safetensors.safe_open(FILE, "pt") as _file:
    ABOUT = json.loads(_file.metadata()["about"])
every_config = pytest.mark.parametrize("name", ABOUT["configs"])


def stored(name: str) -> dict[str, torch.Tensor]:
    tensors = safetensors.torch.load_file(FILE)
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}


@pytest.fixture
def golden(name: str, tmp_path: Path) -> tuple[Prior, dict[str, torch.Tensor]]:
    """The prior, loaded from folders as diffusers writes them, and its stored inputs and outputs."""
    tensors = stored(name)
    weights = {key.removeprefix("weights/"): tensors.pop(key) for key in list(tensors) if key.startswith("weights/")}
    for folder in ("prior", "scheduler"):
        (tmp_path / folder).mkdir()
    safetensors.torch.save_file(weights, tmp_path / "prior/diffusion_pytorch_model.safetensors")
    write(tmp_path / "prior/config.json", {"_class_name": "PriorTransformer", **ABOUT["configs"][name]})
    write(tmp_path / "model_index.json", {"_class_name": "KandinskyV22PriorPipeline"})
    scheduler = {"_class_name": "UnCLIPScheduler", "prediction_type": "sample", "variance_type": "fixed_small_log"}
    write(
        tmp_path / "scheduler/scheduler_config.json",
        {**scheduler, "clip_sample": True, "clip_sample_range": ABOUT["clip_range"], "num_train_timesteps": 1000},
    )
    loaded = load_prior(tmp_path)
    assert loaded.config.diffusion.clip_sample_range == ABOUT["clip_range"]
    empty = EmptyInputs(
        tensors["empty_text_embed"].numpy(), tensors["empty_text_embed"].numpy(), tensors["empty_token_states"].numpy()
    )
    return Prior(loaded.config, loaded.network, loaded.normaliser, empty), tensors


def write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value))


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


@every_config
@torch.no_grad()
def test_predictions(golden: tuple[Prior, dict[str, torch.Tensor]]) -> None:
    prior, tensors = golden
    noise, times, expected = tensors["noise"][0], tensors["timesteps"], tensors["prediction"]
    given = {"text_embed": tensors["text_embed"], "token_states": tensors["token_states"]}
    assert difference(prior.network(noise, times, **given), expected) <= 3e-6
    draws = DrawnTexts(rows=len(times), draws=1, texts=len(times))
    assert difference(prior.network.predict_draws(*given.values(), None, draws, noise, times), expected) <= 3e-6


@every_config
def test_samples(golden: tuple[Prior, dict[str, torch.Tensor]]) -> None:
    prior, tensors = golden
    drawn = prior.sample(
        text_embed=tensors["text_embed"], token_states=tensors["token_states"], noise=tensors["noise"],
        steps=STEPS, sampler="unclip", guidance_scale=SCALE,
    )  # fmt: skip
    assert difference(drawn, tensors["sample"]) <= 5e-6


def test_some_estimates_are_clamped() -> None:
    """Otherwise, the goldens would not notice a sampler that does not clamp."""
    tensors = stored("plain")
    x0 = ((tensors["sample"] - tensors["weights/clip_mean"]) / tensors["weights/clip_std"]).abs() / ABOUT["clip_range"]
    assert (x0 > 0.99).any()
    assert (x0 < 0.9).any()
