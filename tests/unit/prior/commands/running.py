"""Commands that run in this process, and small priors for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from typer.testing import CliRunner, Result

from priorkit.cli import app
from priorkit.pipeline.contract.storage import Store
from priorkit.prior.model.config import PriorConfig, build_network, build_normaliser
from priorkit.prior.model.folder import save_prior
from priorkit.prior.model.prior import Prior
from priorkit.prior.network.settings import NetworkSettings
from priorkit.prior.objective.settings import DiffusionSettings

FAST = ("--steps", "3", "--device", "cpu")


def write_prior(folder: Path, clip_settings: dict[str, Any], max_text_len: int = 0, **config: Any) -> Prior:
    settings = PriorConfig(
        **{
            "embed_dim": 16,
            "token_width": 16 if max_text_len else None,
            "network": NetworkSettings(width=16, depth=1, heads=2, dim_head=8, max_text_len=max_text_len),
            "diffusion": DiffusionSettings(timesteps=10),
            "clip": {},
            "clip_settings": clip_settings,
            **config,
        }
    )
    torch.manual_seed(0)
    prior = Prior(settings, build_network(settings), build_normaliser(settings))
    save_prior(Store(str(folder)).create, settings, prior.network, prior.normaliser)
    return prior


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def good(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def refused(*arguments: object) -> str:
    """Return the message of a failed command: one line on standard error after progress, no traceback, exit code 1."""
    result = run(*arguments)
    assert result.exit_code == 1, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    *before, last = result.stderr.splitlines()
    assert last.startswith("error: ")
    assert all(line.startswith("sample ") for line in before)
    return last
