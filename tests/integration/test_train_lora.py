"""Training of adapters (LoRA): the files of the prior, resuming, other weights, and the export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from priorkit import TrainSettings, export, load_prior, train
from priorkit.pipeline.errors import Interrupted, SettingsError
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.pipeline.settings import parse_settings
from priorkit.prior.interchange.adapter_file import ADAPTER_NAME, read_adapters
from priorkit.prior.model.prior import Prior
from priorkit.prior.network.lora import merge
from priorkit.prior.train.loop import run_loop
from priorkit.prior.train.ranks import Ranks
from priorkit.prior.train.step import Learner

from ..unit.prior.commands.running import FAST, good, refused
from ..unit.prior.interchange.diffusers.folders import CONFIG, write_model
from .test_train_ranks import Seen, assert_same_losses, job_of, on_ranks

READ = ReadSettings(validation_fraction=0.2)
LORA = {"rank": 3, "alpha": 6.0}


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A prior of diffusers that fits the embeddings of the tests."""
    write_model(tmp_path / "start", {**CONFIG, "embedding_dim": 16, "embedding_proj_dim": None, "num_embeddings": 24})
    return tmp_path / "start"


def settings(start: Path, **changes: Any) -> TrainSettings:
    values = {
        "init_from": {"path": str(start)}, "lora": LORA, "steps": 6, "batch_size": 8, "validate_every": 2,
        "checkpoint_every": 2, "device": "cpu", "threads": 1,
        "optimiser": {"learning_rate": 0.01, "warmup_steps": 0, "ema_decay": 0.5}, **changes,
    }  # fmt: skip
    return parse_settings(TrainSettings, values, "test")


def weights(prior: Prior) -> dict[str, torch.Tensor]:
    return prior.network.state_dict()


def test_the_prior_is_the_start_with_the_adapters(embeddings_folder: Path, start: Path, tmp_path: Path) -> None:
    path = tmp_path / "prior"
    train(str(embeddings_folder), str(path), settings(start), READ)
    prior, base, adapters = load_prior(path), load_prior(start), read_adapters(path)
    assert prior.config.lora
    assert len(adapters) == 8
    assert {(len(adapter.down), adapter.scale) for adapter in adapters.values()} == {(3, 2.0)}
    assert any(adapter.up.any() for adapter in adapters.values())
    expected = merge(weights(base), adapters)
    assert all(torch.equal(value, expected[name]) for name, value in weights(prior).items())
    same = load_prior(start, lora=path)
    assert all(torch.equal(value, expected[name]) for name, value in weights(same).items())
    assert torch.equal(prior.normaliser.mean, base.normaliser.mean)
    manifest = json.loads((path / "manifest.json").read_text())
    assert ADAPTER_NAME in json.dumps(manifest["shards"])


def test_checkpoints_hold_the_adapters_only_and_resume_exactly(
    embeddings_folder: Path, start: Path, tmp_path: Path, folder_bytes: Callable[[Path], dict[str, bytes]]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(str(embeddings_folder), str(whole), settings(start), READ)
    calls = iter(range(100))
    with pytest.raises(Interrupted):
        train(str(embeddings_folder), str(parts), settings(start), READ, should_stop=lambda: next(calls) == 3)
    assert not (parts / "model.safetensors").exists()
    train(str(embeddings_folder), str(parts), settings(start), READ)
    assert folder_bytes(parts) == folder_bytes(whole)
    state = safetensors.torch.load_file(sorted((whole / "state").iterdir())[-1])
    names = [name for name in state if name.startswith(("network.", "average."))]
    assert len(names) == 2 * 16
    assert all(".lora_" in name for name in names)


@pytest.mark.parametrize("kind", ["online", "best"])
def test_other_weights_of_the_training(kind: Any, embeddings_folder: Path, start: Path, tmp_path: Path) -> None:
    path = tmp_path / "prior"
    train(str(embeddings_folder), str(path), settings(start), READ)
    file = path / "best.safetensors" if kind == "best" else sorted((path / "state").iterdir())[-1]
    prefix = "" if kind == "best" else "network."
    stored = safetensors.torch.load_file(file)
    base = weights(load_prior(start))
    for name, value in weights(load_prior(path, weights=kind)).items():
        layer = prefix + name.removesuffix(".weight")
        expected = base[name]
        if f"{layer}.lora_A.weight" in stored:
            expected = expected + 2 * stored[f"{layer}.lora_B.weight"] @ stored[f"{layer}.lora_A.weight"]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_weights_that_are_not_trained_are_in_memory_once(start: Path) -> None:
    prior = load_prior(start)
    learner = Learner(prior.config, settings(start), Ranks(0, 1, torch.device("cpu")), None)
    averaged = dict(learner.average.named_parameters())
    for name, value in learner.network.named_parameters():
        assert (averaged[name] is value) == (".lora_" not in name)
        assert not averaged[name].requires_grad


def test_the_export_has_the_base_and_the_adapters_or_both_merged(
    embeddings_folder: Path, start: Path, tmp_path: Path
) -> None:
    path = tmp_path / "prior"
    train(str(embeddings_folder), str(path), settings(start), READ)
    files = export(path, tmp_path / "apart")
    assert f"prior/{ADAPTER_NAME}" in files
    assert "load_lora_adapter" in (tmp_path / "apart/README.md").read_text()
    base, apart = weights(load_prior(start)), weights(load_prior(tmp_path / "apart"))
    for name, value in apart.items():
        torch.testing.assert_close(value, base[name], rtol=1e-6, atol=1e-7)
    export(path, tmp_path / "merged", merge=True)
    assert not (tmp_path / "merged/prior" / ADAPTER_NAME).exists()
    assert "load_lora_adapter" not in (tmp_path / "merged/README.md").read_text()
    expected = weights(load_prior(path))
    merged = weights(load_prior(tmp_path / "merged"))
    assert all(torch.equal(value, expected[name]) for name, value in merged.items())
    with pytest.raises(SettingsError, match=r"merge has no effect: .*start was not trained with adapters"):
        export(start, tmp_path / "none", merge=True)
    with pytest.raises(SettingsError, match="weights=online: only the adapters of ema are stored alone"):
        export(path, tmp_path / "none", weights="online")


def test_the_commands_take_adapters(embeddings_folder: Path, start: Path, tmp_path: Path) -> None:
    path = tmp_path / "prior"
    train(str(embeddings_folder), str(path), settings(start), READ)
    drawn = {}
    for name, arguments in {"base": [start], "added": [start, "--lora", path / ADAPTER_NAME], "merged": [path]}.items():
        file = tmp_path / f"{name}.npy"
        good("sample", *arguments, "--embeddings", embeddings_folder, "--output", file, *FAST, "--sampler", "unclip")
        drawn[name] = np.load(file)
    assert np.array_equal(drawn["added"], drawn["merged"])
    assert not np.allclose(drawn["base"], drawn["merged"], rtol=0.01)
    assert "lora=nothing: no such file" in refused("sample", start, "a cat", "--lora", "nothing", *FAST)
    shown = json.loads(good("export", path, tmp_path / "merged", "--merge", "--json").stdout)
    assert len(shown["files"]) == 5
    assert "merge has no effect" in refused("export", start, tmp_path / "none", "--merge")


def test_mistakes_are_named(embeddings_folder: Path, start: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="lora adapts a trained prior, and init_from names none"):
        parse_settings(TrainSettings, {"lora": LORA}, "test")
    wrong = settings(start, lora={"targets": ["to_qkv"]})
    with pytest.raises(SettingsError, match=r"train\.lora\.targets: no linear layer is named to_qkv; known are"):
        train(str(embeddings_folder), str(tmp_path / "prior"), wrong, READ)


@pytest.mark.slow
def test_ranks_train_the_adapters_of_one_process_and_resume(
    embeddings_folder: Path, start: Path, tmp_path: Path
) -> None:
    """Only the first rank reads the initial prior, also when checkpoints without its weights are resumed."""
    chosen = settings(start, log_every=1)
    run_loop(job := job_of(embeddings_folder, tmp_path / "alone", chosen), job.open_embeddings(), Seen())
    on_ranks(job_of(embeddings_folder, tmp_path / "two", chosen, limit=3), 2, tmp_path / "ranks")
    assert not (tmp_path / "two" / ADAPTER_NAME).exists()
    on_ranks(job_of(embeddings_folder, tmp_path / "two", chosen), 2, tmp_path / "ranks")
    assert_same_losses(tmp_path / "alone", tmp_path / "two", 6)
    one, two = (read_adapters(tmp_path / name) for name in ("alone", "two"))
    for name, adapter in one.items():
        torch.testing.assert_close(two[name].up, adapter.up, rtol=1e-3, atol=1e-5)
