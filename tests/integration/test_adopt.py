"""`priorkit adopt`, and training, evaluation and sampling on what it wrote."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from priorkit.cli import app
from priorkit.pipeline.adopt.settings import AdoptSettings
from priorkit.pipeline.adopt.stage import adopt
from priorkit.pipeline.errors import InputError, SettingsError
from priorkit.pipeline.read.dataset import read_embeddings
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.prior.evaluate.compare import compare
from priorkit.prior.evaluate.settings import EvaluateSettings
from priorkit.prior.evaluate.stage import evaluate
from priorkit.prior.interchange.load import load_prior
from priorkit.prior.sampling.settings import SampleSettings
from priorkit.prior.train.settings import InitSettings
from priorkit.prior.train.stage import train
from priorkit.recipes.commands.metrics import print_metrics

from .command_server import Command, CommandServer
from .conftest import committed, environment, wait_for
from .synthetic import SMALL_TRAIN, changed

ROWS, SOURCE, TARGET = 400, 5, 12
READ = ReadSettings(validation_fraction=0.1, test_fraction=0.2)
BRIEF = changed(SMALL_TRAIN, steps=4, validate_every=2, checkpoint_every=2)
"""Training settings for priors whose quality does not matter."""
QUICK = EvaluateSettings(threads=1, draws=2, sample=SampleSettings(steps=4), bootstrap_samples=100, device="cpu")


def units(rows: int, dim: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(rows, dim))
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True), np.float32)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two spaces of other sizes; the target follows from the source."""
    folder = tmp_path_factory.mktemp("pair")
    source = units(ROWS, SOURCE, 0)
    target = source @ np.random.default_rng(1).normal(size=(SOURCE, TARGET)) + 0.1 * units(ROWS, TARGET, 2)
    np.save(folder / "audio.npy", source)
    np.save(folder / "image.npy", target.astype(np.float32))
    return folder


def adopted(pair: Path, folder: Path, source: str = "audio", target: str = "image") -> Path:
    settings = AdoptSettings(source=source, target=target, not_clip="clap and dino", normalise=True)
    adopt(str(pair), str(folder), settings)
    return folder


def run(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.output + (result.stderr if code else "")


@pytest.mark.parametrize(("source", "target"), [("audio", "image"), ("image", "audio")])
def test_a_prior_translates_between_spaces_of_other_sizes(
    source: str, target: str, pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"audio": SOURCE, "image": TARGET}
    folder = adopted(pair, tmp_path / "embeddings", source, target)
    train(str(folder), str(tmp_path / "prior"), changed(BRIEF, noise_draws=2), READ)
    config = json.loads((tmp_path / "prior/config.json").read_text())
    assert (config["embed_dim"], config["text_dim"]) == (sizes[target], sizes[source])
    assert (config["clip"], config["clip_settings"]) == ({}, {})
    model = "clap and dino"
    assert config["spaces"] == {
        "source": {"name": source, "size": sizes[source], "model": model},
        "target": {"name": target, "size": sizes[target], "model": model},
    }
    result = evaluate(str(tmp_path / "prior"), str(folder), str(tmp_path / "evaluation"), QUICK)
    assert "the baselines text embedding and mean shift, mean nothing and are left out" in result.notes[-1]
    metrics = json.loads((tmp_path / "evaluation/metrics.json").read_text())
    predictors = {each["name"]: each for each in metrics["splits"]["test"]["predictors"]}
    assert list(predictors) == [
        "prior", "ridge regression", "linear-Gaussian", "nearest neighbour", "random training image"
    ]  # fmt: skip
    assert not [name for name in predictors["prior"]["metrics"] if "text" in name or "caption" in name]
    ridge, chance = (predictors[name]["metrics"] for name in ("ridge regression", "random training image"))
    assert ridge["energy_score"]["value"] < chance["energy_score"]["value"]
    print_metrics(metrics)
    printed = capsys.readouterr().out
    assert "true target" in printed
    assert "cosine to text" not in printed


@pytest.fixture(scope="module")
def prior(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior between two spaces, beside its embeddings."""
    folder = tmp_path_factory.mktemp("two spaces")
    train(str(adopted(pair, folder / "embeddings")), str(folder / "prior"), BRIEF, READ)
    return folder / "prior"


def test_sampling_says_what_is_left_out(prior: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    words = ("sample", str(prior), "--embeddings", str(prior.parent / "embeddings"), "--output", str(output))
    printed = run(*words, "--steps", "2", "--num-candidates", "4")
    assert "cosines to the source are left out" in printed
    assert "one draw is made for each source" in printed
    assert np.load(output).shape == (ROWS, TARGET)
    single = np.load(output)
    run(*words, "--steps", "2", "--num-candidates", "1")
    assert np.array_equal(np.load(output), single)
    np.save(tmp_path / "source.npy", units(3, SOURCE, 9))
    words = ("sample", str(prior), "--embeddings", str(tmp_path / "source.npy"), "--output", str(output))
    done = json.loads(run(*words, "--json"))
    assert (done["shape"], done["mean_cosine_to_text"], done["cosine_to_text"]) == ([3, TARGET], None, [])


def test_captions_cannot_be_encoded(prior: Path, tmp_path: Path) -> None:
    refused = run("sample", str(prior), "a red square", "--output", str(tmp_path / "x.npy"), code=1)
    assert "no CLIP was declared for this prior, so captions cannot be encoded" in refused
    assert "'audio'" in refused


def test_other_spaces_are_refused(prior: Path, pair: Path, tmp_path: Path) -> None:
    folder = adopted(pair, tmp_path / "reversed", "image", "audio")
    with pytest.raises(InputError, match=r"holds embeddings of 5, .* predicts 12"):
        evaluate(str(prior), str(folder), str(tmp_path / "evaluation"), QUICK)
    adopt(
        str(pair), str(tmp_path / "named"),
        AdoptSettings(source="audio", target="image", not_clip="other", normalise=True), limit=ROWS - 5,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"has another source or target than .* was trained with: audio to im"):
        evaluate(str(prior), str(tmp_path / "named"), str(tmp_path / "evaluation"), QUICK)
    start = BRIEF.model_copy(update={"init_from": InitSettings(path=str(prior))})
    with pytest.raises(InputError, match=r"translates audio to image of clap and dino; .* audio to image of other"):
        train(str(tmp_path / "named"), str(tmp_path / "new"), start, READ)
    online = changed(BRIEF, text_condition="online")
    with pytest.raises(InputError, match="no CLIP made"):
        train(str(tmp_path / "named"), str(tmp_path / "new"), online, READ)


def test_a_prior_of_two_spaces_is_trained_on(prior: Path, tmp_path: Path) -> None:
    start = BRIEF.model_copy(update={"init_from": InitSettings(path=str(prior)), "steps": 2})
    result = train(str(prior.parent / "embeddings"), str(tmp_path / "new"), start, READ)
    assert result.notes == []
    assert load_prior(str(tmp_path / "new")).config.spaces == load_prior(str(prior)).config.spaces


def test_meaningless_baselines_are_refused_by_name(prior: Path, tmp_path: Path) -> None:
    settings = EvaluateSettings(**(QUICK.model_dump(exclude_unset=True) | {"baselines": ("mean shift",)}))
    with pytest.raises(SettingsError, match="'mean shift' needs source and target in one space"):
        evaluate(str(prior), str(prior.parent / "embeddings"), str(tmp_path / "evaluation"), settings)


def test_the_report_and_comparison_of_two_spaces(prior: Path, tmp_path: Path) -> None:
    evaluate(str(prior), str(prior.parent / "embeddings"), str(tmp_path / "one"), QUICK)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert compare([str(tmp_path / "one"), str(tmp_path / "two")])
    page = str(tmp_path / "r.html")
    printed = run("report", str(tmp_path / "one"), "--images", str(tmp_path / "none"), "--output", page)
    assert "sources cannot be shown among targets" in printed + (tmp_path / "r.html").read_text()


def test_equal_sizes_of_two_spaces_are_not_compared_either(pair: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", units(ROWS, 8, 0))
    np.save(tmp_path / "b.npy", units(ROWS, 8, 1))
    adopt(str(tmp_path), f"{tmp_path}-out", AdoptSettings(source="a", target="b", not_clip="a and b"))
    train(f"{tmp_path}-out", f"{tmp_path}-prior", BRIEF, READ)
    config = load_prior(f"{tmp_path}-prior").config
    assert (config.text_dim, config.compares_texts) == (None, False)
    result = evaluate(f"{tmp_path}-prior", f"{tmp_path}-out", f"{tmp_path}-evaluation", QUICK)
    assert "mean nothing" in result.notes[-1]


def test_the_command_reports_and_refuses(pair: Path, tmp_path: Path) -> None:
    words = ("adopt", str(pair), str(tmp_path / "out"), "--source", "audio", "--target", "image", "--normalise")
    assert "say which CLIP made the embeddings (--clip" in run(*words, code=1)
    assert "--clip-pretrained x: name its model" in run(*words, "--not-clip", "a", "--clip-pretrained", "x", code=1)
    plan = json.loads(run(*words, "--not-clip", "a", "--dry-run", "--json"))
    assert (plan["stage"], plan["pending_rows"]) == ("adopt", ROWS)
    assert not (tmp_path / "out").exists()
    printed = run(*words, "--not-clip", "a")
    assert "source audio: 5 values of float32, norms" in printed
    done = json.loads(run(*words, "--not-clip", "a", "--json"))
    assert (done["done_now"], done["rows"], done["statistics"]["target"]["size"]) == (0, ROWS, TARGET)
    assert json.loads(run("inspect", str(tmp_path / "out"), "--json"))["problem_count"] == 0
    for error in (run(*words, "--not-clip", "b", code=1), run("adopt", str(tmp_path / "none"), "x", code=1)):
        assert len(error.strip().splitlines()) <= 3


@pytest.mark.parametrize("layout", ["datacomp", "columns", "parts", "inside"])
def test_messages_about_other_layouts_name_a_command_that_works(layout: str, tmp_path: Path, tiny_clip: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    vectors = {kind: units(20, 16, seed) for seed, kind in enumerate(("img", "txt"))}
    if layout == "datacomp":
        np.savez(folder / "0034.npz", **{f"{m}_{kind}": v for m in ("l14", "b32") for kind, v in vectors.items()})
        pq.write_table(pa.table({"uid": [f"{row}" for row in range(20)], "text": ["t"] * 20}), folder / "0034.parquet")
    elif layout == "columns":
        columns = {"caption": ["t"] * 20, "image_embedding": vectors["img"].tolist(),
                   "text_embedding": vectors["txt"].tolist()}  # fmt: skip
        pq.write_table(pa.table(columns), folder / "train-00000-of-00001.parquet")
    elif layout == "parts":
        for part in range(2):
            for name, values in (("img_emb", vectors["img"]), ("text_emb", vectors["txt"])):
                (folder / f"part_{part}/{name}").mkdir(parents=True)
                np.save(folder / f"part_{part}/{name}/{name}_0.npy", values)
    else:
        np.save(folder / "image.npy", vectors["img"])
        np.save(folder / "text.npy", vectors["txt"])
    refused = run("inspect", str(folder), code=1)
    with pytest.raises(InputError) as error:
        read_embeddings(str(folder))
    command = str(error.value).partition("`priorkit ")[2].partition("`")[0]
    assert command in refused
    words = command.replace("NEW_FOLDER", str(tmp_path / "out")).replace("MODEL", f"local-dir:{tiny_clip}")
    run(*words.partition(" --clip-pretrained")[0].split())
    dataset = read_embeddings(str(tmp_path / "out"))
    assert dataset.count == (40 if layout == "parts" else 20)
    np.testing.assert_allclose(dataset.take(np.array([3])).image_embed[0], vectors["img"][3], atol=1e-3)


def wait_for_change(folder: Path, process: Command) -> None:
    """Wait until a command has written something into its folder, or has ended."""
    known = len(list(folder.rglob("*")))
    wait_for(lambda: process.poll() is not None or len(list(folder.rglob("*"))) != known)


@pytest.mark.slow
def test_ten_kills_change_no_byte(commands: CommandServer, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    np.save(source / "image.npy", units(60_000, 64, 0))
    np.save(source / "text.npy", units(60_000, 48, 1))
    keys = [f"key {row}" for row in range(60_000)]
    pq.write_table(pa.table({"key": keys, "caption": keys}), source / "image.parquet")
    options = ["--metadata", "image.parquet", "--not-clip", "x", "--rows-per-shard", "5000"]

    def start(folder: Path) -> Command:
        return commands.start(["adopt", str(source), str(folder), *options], tmp_path, environment())

    first = start(tmp_path / "whole")
    wait_for((tmp_path / "whole").exists)
    began = time.monotonic()
    error = first.communicate(timeout=600)[1]
    assert first.returncode == 0, error
    seconds = time.monotonic() - began
    killed = 0
    instants: Any = random.Random(0)
    for _ in range(10):
        process = start(tmp_path / "killed")
        wait_for_change(tmp_path / "killed", process)
        time.sleep(instants.uniform(0, seconds / 6))
        killed += process.poll() is None
        process.kill()
        process.communicate(timeout=240)
    assert killed >= 5
    process = start(tmp_path / "killed")
    error = process.communicate(timeout=600)[1]
    assert process.returncode == 0, error
    assert committed(tmp_path / "killed") == committed(tmp_path / "whole")
