"""Real checkpoints of DALLE2-pytorch through the installed command: convert, sample, and export what was trained."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.prior.interchange.load import load_prior
from priorkit.prior.train.stage import train

from ..parity.checkpoints import CHECKPOINTS, Checkpoint
from .command_server import CommandServer
from .synthetic import SMALL_TRAIN, changed, write_embeddings


@pytest.fixture
def command(tmp_path: Path, commands: CommandServer) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs commands in a folder of its own."""

    def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = commands.run([*map(str, arguments)], tmp_path, {**os.environ, "COLUMNS": "200"})
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda checkpoint: checkpoint.name)
def test_a_checkpoint_is_converted_and_sampled(
    checkpoint: Checkpoint, command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Those that take token states are asked for the CLIP that would make them."""
    weights = checkpoint.weights[-1]
    given = ("--config", checkpoint.json, "--weights", weights)
    assert command("convert", checkpoint.pth, "prior", *given).stdout == "wrote prior\n"
    config = json.loads((tmp_path / "prior/config.json").read_text())
    assert config["network"]["function_version"] == checkpoint.release
    assert config["clip"] == {}

    inputs = checkpoint.inputs()
    np.save(tmp_path / "texts.npy", inputs["text_embed"])
    options = ("--embeddings", "texts.npy", "--steps", "4", "--device", "cpu")
    if "token_states" in inputs:
        assert "takes token states too" in command("sample", "prior", *options, code=1).stderr
        assert not (tmp_path / "samples.npy").exists()
        return
    summary: dict[str, Any] = json.loads(command("sample", "prior", *options, "--json").stdout)
    assert summary["shape"] == list(inputs["text_embed"].shape)
    converted = np.load(tmp_path / "samples.npy")
    command("sample", checkpoint.pth, *options, *given)
    assert np.array_equal(np.load(tmp_path / "samples.npy"), converted)


def test_a_prior_that_we_trained_comes_back_from_its_export(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    write_embeddings(tmp_path / "embeddings")
    dim = EmbeddingDataset(str(tmp_path / "embeddings")).embed_dim
    settings = changed(SMALL_TRAIN, steps=4, network__width=dim, diffusion__timesteps=50)
    train(str(tmp_path / "embeddings"), str(tmp_path / "prior"), settings, ReadSettings(test_fraction=0.2))
    command("convert", "prior", "out/prior.pth")
    command("convert", "out/prior.pth", "again", "--config", "out/prior.json")
    mine, again = load_prior(str(tmp_path / "prior")), load_prior(str(tmp_path / "again"))
    texts = torch.randn(5, dim, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.sample(text_embed=texts, steps=5), mine.sample(text_embed=texts, steps=5))
    assert again.config.diffusion == mine.config.diffusion

    said = command("convert", "out/prior.pth", "prior", "--config", "out/prior.json", "--overwrite", code=1).stderr
    assert "is the folder of a training; choose another" in said
