"""Everything that is done with a prior, with one of the family `prior-transformer`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import yaml

import priorkit
from priorkit.pipeline.errors import SettingsError
from priorkit.prior.interchange.load import load_prior
from priorkit.prior.train.stage import train

from .conftest import Finished, Workspace
from .known_norms import KNOWN_NORMS, norm_errors, write_known_norms
from .synthetic import SMALL_RAW, changed, write_embeddings

NETWORK = {"family": "prior-transformer", "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2}
PARTS_OF_OTHER_TOOLS = ("img_emb", "text_emb", "metadata")


def use_family(workspace: Workspace, **train_values: Any) -> None:
    """Change the recipe of a workspace to one of this family."""
    path = workspace.path / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text())
    recipe["train"] |= {"network": NETWORK, "diffusion": {"normaliser": "clip_stats"}, **train_values}
    recipe["evaluate"]["sample"] |= {"guidance_scale": 2.0}
    path.write_text(yaml.safe_dump(recipe))


@pytest.fixture(scope="module")
def trained(make_workspace: Callable[[], Workspace], finished: Finished) -> Workspace:
    """A workspace in which `run` has trained and evaluated a prior. Tests must not change it."""
    workspace = make_workspace()
    use_family(workspace)
    for stage in ("download", "embed"):
        shutil.copytree(finished.workspace.folder(stage), workspace.folder(stage))
    done = workspace.json("run", "recipe.yaml")
    assert [stage["done_now"] for stage in done["stages"]][:3] == [0, 0, 60]
    return workspace


@pytest.fixture
def copied(trained: Workspace, workspace: Workspace) -> Workspace:
    """The same, for a test to change."""
    shutil.copytree(trained.data, workspace.data)
    use_family(workspace)
    return workspace


def norms(embeds: torch.Tensor) -> torch.Tensor:
    return embeds.norm(dim=-1)


# the commands


def test_a_dry_run_plans_every_stage(trained: Workspace, workspace: Workspace) -> None:
    use_family(workspace)
    for stage in ("download", "embed"):
        shutil.copytree(trained.folder(stage), workspace.folder(stage))
    plans = workspace.json("run", "recipe.yaml", "--dry-run")
    assert [plan["stage"] for plan in plans] == ["download", "embed", "train", "evaluate"]
    assert (plans[2]["pending_units"], plans[2]["time_basis"]) == (60, "estimate")
    assert [plan["pending_units"] for plan in trained.json("run", "recipe.yaml", "--dry-run")] == [0] * 4


def test_the_folders_are_sound_and_up_to_date(trained: Workspace) -> None:
    for folder in ("prior", "evaluation"):
        assert trained.json("inspect", f"data/{folder}")["problems"] == []
    assert [row["state"] for row in trained.json("status", "recipe.yaml")] == ["up to date"] * 4


def test_evaluations_are_reported_and_compared_with_those_of_the_other_family(
    copied: Workspace, finished: Finished
) -> None:
    shutil.copytree(finished.workspace.folder("evaluate"), copied.path / "first")
    metrics = json.loads((copied.folder("evaluate") / "metrics.json").read_text())
    scores = {
        each["name"]: each["metrics"]["energy_score"]["value"] for each in metrics["splits"]["test"]["predictors"]
    }
    assert 0 < scores["prior"] < 0.5 < scores["text embedding"]  # of unit embeddings, whatever norms the prior predicts
    compared = copied.run("compare", "first", "data/evaluation").stdout
    assert "energy score" in compared
    copied.run("report", "data/evaluation", "--output", "report.html")
    assert "energy score" in (copied.path / "report.html").read_text()


@pytest.mark.slow
def test_samples_of_prompts_equal_those_of_stored_embeddings_of_the_captions(copied: Workspace) -> None:
    """Those are float16, and norms float32; samples of priors that are read for decoders are not normalised."""
    captions = pq.read_table(copied.folder("embed") / "metadata/metadata_0000.parquet")["caption"].to_pylist()[:8]
    rows = copied.path / "rows"
    shutil.copytree(copied.folder("embed"), rows)
    options = ("--guidance-scale", "4", "--steps", "25", "--num-candidates", "1", "--sampler", "unclip")
    copied.run("sample", "data/prior", *captions, *options, "--output", "prompts.safetensors")
    copied.run("sample", "data/prior", "--embeddings", "rows", *options, "--output", "stored.npy")
    written = safetensors.torch.load_file(copied.path / "prompts.safetensors")
    fresh, stored = written["image_embed"], torch.from_numpy(np.load(copied.path / "stored.npy"))[: len(captions)]
    assert float(F.cosine_similarity(fresh, stored).min()) >= 0.99999
    torch.testing.assert_close(norms(fresh), norms(stored), rtol=1e-3, atol=0)
    known = load_prior(str(copied.folder("train"))).config.image_norm
    assert known is not None
    assert float(((norms(fresh) - known.mean).abs() / known.mean).max()) < 0.3


@pytest.mark.slow
def test_a_negative_prompt_and_unit_norms(copied: Workspace) -> None:
    common = ("sample", "data/prior", "a red square", "--guidance-scale", "3", "--steps", "4")
    for name, options in (("plain", ()), ("negative", ("--negative-prompt", "blue")), ("unit", ("--norm", "unit"))):
        copied.run(*common, *options, "--output", f"{name}.npy")
    plain, negative, unit = (np.load(copied.path / f"{name}.npy") for name in ("plain", "negative", "unit"))
    assert not np.allclose(plain, negative)
    np.testing.assert_allclose(np.linalg.norm(unit), 1, rtol=1e-5)
    np.testing.assert_allclose(plain / np.linalg.norm(plain), unit, rtol=1e-4, atol=1e-6)


def test_captions_are_encoded_during_training(copied: Workspace) -> None:
    """With the losses of stored conditions, but for their rounding."""
    stored = [json.loads(line) for line in (copied.folder("train") / "metrics.jsonl").read_text().splitlines()]
    model = json.loads((copied.folder("train") / "config.json").read_text())["clip_settings"]["model"]
    small = ("--set", "embed.batch_size=2", "--set", "embed.threads=1", "--device", "cpu", "--model", model)
    copied.run("embed", "data/images", "--embeddings", "plain", *small)
    assert not (copied.path / "plain/token_states").exists()
    online = ("--set", "train.text_condition=online", "--prior", "online")
    copied.run("train", "recipe.yaml", "--embeddings", "plain", *online)
    found = [json.loads(line) for line in (copied.path / "online/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in found] == [line["step"] for line in stored]
    for name in ("loss", "validation_loss"):
        values = [[line[name] for line in log if name in line] for log in (stored, found)]
        np.testing.assert_allclose(*values, rtol=2e-3)


def test_folders_of_other_tools_lack_what_is_needed(copied: Workspace) -> None:
    """Without a manifest, the norms of embeddings are in the metadata or nowhere; the CLIP encodes the empty text."""
    for part in PARTS_OF_OTHER_TOOLS:
        shutil.copytree(copied.folder("embed") / part, copied.path / "theirs" / part)
    command = ("train", "recipe.yaml", "--embeddings", "theirs", "--prior", "new")
    assert "or take train.text_condition=online\n" in copied.run(*command, code=1).stderr
    copied.run(*command, "--set", "train.text_condition=online", "--set", "train.steps=2")
    prior = load_prior(str(copied.path / "new"))
    assert prior.empty is not None
    stored = load_prior(str(copied.folder("train"))).empty
    assert stored is not None
    np.testing.assert_allclose(prior.empty.text_embed, stored.text_embed, rtol=1e-5, atol=1e-6)
    for path in (copied.path / "theirs/metadata").iterdir():
        table = pq.read_table(path)
        pq.write_table(table.drop_columns([name for name in table.column_names if name.endswith("_norm")]), path)
    shutil.rmtree(copied.path / "new")
    shutil.rmtree(copied.path / "theirs/selections", ignore_errors=True)
    shutil.rmtree(copied.path / "theirs/cache", ignore_errors=True)
    for extra in ((), ("--set", "train.text_condition=online")):
        error = copied.run(*command, *extra, code=1).stderr
        assert "stores no norms of its image embeddings" in error
        assert "Make the folder with `priorkit embed`" in error


@pytest.mark.slow
def test_the_recipe_finetune_kandinsky(copied: Workspace, tiny_clip: Path) -> None:
    """On a folder of diffusers. Its statistics stay, and text is dropped to the CLIP's encoding of the empty text."""
    copied.run("export", "data/prior", "kandinsky")
    values = {
        "embed.clip": f"{{model: 'local-dir:{tiny_clip}', pretrained: null}}", "train.steps": 8, "train.device": "cpu",
        "train.batch_size": 16, "train.accumulate": 2, "train.threads": 1, "train.validate_every": 4,
        "train.dtype": "float32", "evaluate.draws": 2, "evaluate.bootstrap_samples": 100, "evaluate.sample.steps": 4,
        "train.optimiser.warmup_steps": 0, "embed.batch_size": 8,
    }  # fmt: skip
    sets = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    shutil.copytree(copied.folder("download"), copied.path / "data/finetune-kandinsky/images")
    done = copied.json("run", "finetune-kandinsky", "--from", "embed", *sets)
    assert [stage["stage"] for stage in done["stages"]] == ["embed", "train", "evaluate"]
    assert any("does not name its CLIP" in note for note in done["stages"][1]["notes"])
    start, tuned = (load_prior(str(copied.path / each)) for each in ("kandinsky", "data/finetune-kandinsky/prior"))
    for name, value in start.normaliser.state_dict().items():
        assert torch.equal(value, tuned.normaliser.state_dict()[name])
    before, after = start.network.state_dict(), tuned.network.state_dict()
    change = [float((after[name] - value).abs().max()) for name, value in before.items()]
    assert 0 < max(change) < 1e-3
    assert tuned.empty is not None


# Python


def test_the_api_reads_raw_conditions(trained: Workspace) -> None:
    prior = priorkit.load_prior(str(trained.folder("train")))
    dataset = priorkit.read_embeddings(str(trained.folder("embed")))
    rows = dataset.rows("test")[:3]
    batch = prior.read(dataset, rows)
    drawn = prior.sample(text_embed=batch.text_embed, token_states=batch.token_states, steps=5)
    captions = dataset.metadata(rows, ["caption"])["caption"].to_pylist()
    torch.testing.assert_close(drawn, prior.sample(captions, steps=5), rtol=3e-3, atol=3e-3)
    unit = dataset.take(rows, prior.token_states_used)
    with pytest.raises(SettingsError, match=r"has rows of norm 1, .* multiply each row by its norm"):
        prior.sample(text_embed=unit.text_embed, token_states=unit.token_states)


@pytest.mark.slow
def test_a_training_that_is_stopped_and_resumed_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    """With dropout, several draws, and micro-batches."""
    embeddings = write_embeddings(tmp_path / "embeddings", rows=300, token_states=True, raw=True)
    settings = changed(
        SMALL_RAW, steps=12, checkpoint_every=3, noise_draws=2, accumulate=2, network__dropout=0.1, validate_every=4,
        activation_checkpointing=True,
    )  # fmt: skip
    for name, limits in (("whole", [None]), ("parts", [2, 7, None])):
        for limit in limits:
            train(str(embeddings), str(tmp_path / name), settings, limit=limit)
    for file in ("metrics.jsonl", "model.safetensors", "best.safetensors", "state/step_000000012.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes(), file


@pytest.mark.slow
def test_a_killed_training_is_the_same_bit_for_bit(trained: Workspace, copied: Workspace) -> None:
    shutil.rmtree(copied.folder("train"))
    shutil.rmtree(copied.folder("evaluate"))
    for _ in range(2):
        process = copied.start("train", "recipe.yaml")
        known = set(copied.folder("train").rglob("step*"))
        while not set(copied.folder("train").rglob("step*")) - known and process.poll() is None:
            pass
        process.kill()
        process.communicate(timeout=600)
    copied.run("run", "recipe.yaml")
    assert copied.committed("train", "evaluate") == trained.committed("train", "evaluate")
    assert copied.last_checkpoint() == trained.last_checkpoint()


@pytest.mark.slow
def test_norms_have_the_true_conditional_mean_and_spread(tmp_path: Path) -> None:
    """On data whose distribution is known: a mean and a spread of norms for each kind of captions.

    `priors.md` has the figures of this test, and those of a prior of unit embeddings with the mean norm.
    """
    embeddings = write_known_norms(tmp_path / "embeddings", 20_000)
    train(str(embeddings), str(tmp_path / "prior"), KNOWN_NORMS)
    mean, spread = norm_errors(load_prior(str(tmp_path / "prior")))
    assert mean < 0.05
    assert spread < 0.15  # after so short a training
