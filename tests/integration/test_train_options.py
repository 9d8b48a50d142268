"""What a training may be told besides: where to start from, where its text comes from, and who is shown its metrics."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from priorkit.pipeline.clip.settings import ClipSettings
from priorkit.pipeline.errors import FolderError, InputError, SettingsError
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.prior.interchange.load import convert, load_prior
from priorkit.prior.train import trackers, validation
from priorkit.prior.train.settings import TrainSettings
from priorkit.prior.train.stage import plan_train, train

from .conftest import environment
from .synthetic import SMALL_TRAIN, changed, write_embeddings

SPLIT = ReadSettings(validation_fraction=0.1)


def log_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embeddings(tmp_path_factory.mktemp("synthetic") / "embeddings")


@pytest.fixture(scope="module")
def first(embeddings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior to start from, with whitened embeddings."""
    folder = tmp_path_factory.mktemp("first")
    settings = changed(SMALL_TRAIN, steps=50, validate_every=50, checkpoint_every=50, diffusion__normaliser="whiten")
    train(str(embeddings), str(folder), settings)
    return folder


def starting(path: Path, **values: Any) -> TrainSettings:
    """Settings of a recipe that says nothing of the network."""
    common = SMALL_TRAIN.model_dump(exclude={"network", "diffusion"})
    return TrainSettings.model_validate({**common, "init_from": {"path": str(path)}, "log_every": 1, **values})


# the best weights


def test_the_best_weights_are_those_of_the_lowest_validation_loss(
    embeddings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With validation made to find a minimum in the middle."""
    settings = changed(SMALL_TRAIN, steps=10, validate_every=2)
    losses = validation.timestep_losses
    network = []

    def lowest_at_eight(prior: Any, *others: Any) -> dict[str, np.ndarray]:
        found = losses(prior, *others)
        network.append(prior.network.query.detach().clone())
        return {name: np.full_like(value, abs(len(network) - 4)) for name, value in found.items()}

    monkeypatch.setattr(validation, "timestep_losses", lowest_at_eight)
    train(str(embeddings), str(tmp_path / "whole"), settings, SPLIT)
    losses_found = [line["validation_loss"] for line in log_of(tmp_path / "whole") if "validation_loss" in line]
    assert losses_found == [3, 2, 1, 0, 1]
    best = load_prior(str(tmp_path / "whole"), weights="best").network
    assert torch.equal(best.query, network[3])
    assert not torch.equal(best.query, load_prior(str(tmp_path / "whole")).network.query)
    monkeypatch.undo()


def test_the_best_weights_are_the_same_after_stops(
    embeddings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With validation made to find its minimum before the last stops."""

    def lowest_at_six(self: validation.Validation, learner: Any, step: int) -> dict[str, float]:
        return {"validation_loss": abs(step - 6.0)}

    monkeypatch.setattr(validation.Validation, "__call__", lowest_at_six)
    settings = changed(SMALL_TRAIN, steps=12, validate_every=2)
    train(str(embeddings), str(tmp_path / "whole"), settings, SPLIT)
    for limit in (3, 7, 8, None):
        train(str(embeddings), str(tmp_path / "parts"), settings, SPLIT, limit=limit)
    whole, parts = ((tmp_path / name / "best.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_without_validation_there_are_no_best_weights(embeddings: Path, tmp_path: Path) -> None:
    train(str(embeddings), str(tmp_path), changed(SMALL_TRAIN, steps=2), ReadSettings(validation_fraction=0))
    with pytest.raises(InputError, match="weights='best' are kept by a training that validates"):
        load_prior(str(tmp_path), weights="best")


def test_checkpoints_by_time(embeddings: Path, tmp_path: Path) -> None:
    settings = changed(SMALL_TRAIN, steps=8, checkpoint_every=1000, checkpoint_minutes=1e-9, keep_checkpoints=100)
    train(str(embeddings), str(tmp_path), settings)
    assert len(list((tmp_path / "state").iterdir())) == 8


# another prior


def test_a_start_goes_on_with_the_weights_and_statistics_of_another_prior(
    embeddings: Path, first: Path, tmp_path: Path
) -> None:
    source = load_prior(str(first))
    settings = starting(first, steps=6, optimiser={**SMALL_TRAIN.optimiser.model_dump(), "warmup_steps": 0})
    train(str(embeddings), str(tmp_path / "tuned"), settings)
    tuned = load_prior(str(tmp_path / "tuned"))
    assert tuned.config == source.config
    assert torch.equal(tuned.normaliser.mean, source.normaliser.mean)
    assert not torch.equal(tuned.network.query, source.network.query)
    anew = changed(SMALL_TRAIN, steps=6, log_every=1, diffusion__normaliser="whiten")
    train(str(embeddings), str(tmp_path / "anew"), anew)
    early = [np.mean([line["loss"] for line in log_of(tmp_path / name)[:5]]) for name in ("tuned", "anew")]
    assert early[0] < 0.85 * early[1]


def test_a_start_is_resumed_exactly_and_another_source_is_refused(
    embeddings: Path, first: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    convert(first, moved)
    train(str(embeddings), str(tmp_path / "whole"), starting(first, steps=10))
    for limit, path in ((3, first), (7, moved), (None, first)):  # the same weights elsewhere are the same
        train(str(embeddings), str(tmp_path / "parts"), starting(path, steps=10), limit=limit)
    for file in ("metrics.jsonl", "model.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()
    weights = safetensors.torch.load_file(moved / "model.safetensors")
    safetensors.torch.save_file({**weights, "query": weights["query"] + 1}, moved / "model.safetensors")
    with pytest.raises(FolderError, match=r"init_from\.sha256"):
        train(str(embeddings), str(tmp_path / "parts"), starting(moved, steps=10))
    with pytest.raises(FolderError, match="init_from"):
        train(str(embeddings), str(tmp_path / "parts"), changed(SMALL_TRAIN, steps=10, diffusion__normaliser="whiten"))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"network": {"depth": 3}}, r"train\.network\.depth=3, but the prior to start from has 2; leave it out"),
        ({"diffusion": {"prediction": "v"}}, r"train\.diffusion\.prediction=v, but the prior .* has x0"),
        ({"text_condition": "stored"}, None),
        ({"network": {"depth": 2, "ff_dropout": 0.1}, "diffusion": {"loss": "l1", "text_drop": 0.2}}, None),
    ],
)
def test_what_a_start_leaves_to_the_recipe(
    embeddings: Path, first: Path, tmp_path: Path, values: dict[str, Any], named: str | None
) -> None:
    settings = starting(first, steps=2, **values)
    if named is None:
        train(str(embeddings), str(tmp_path / "prior"), settings)
        found = load_prior(str(tmp_path / "prior")).config
        assert found.network.ff_dropout == values.get("network", {}).get("ff_dropout", 0.0)
        assert found.diffusion.loss == values.get("diffusion", {}).get("loss", "l2")
    else:
        with pytest.raises(SettingsError, match=named):
            train(str(embeddings), str(tmp_path / "prior"), settings)
        assert not (tmp_path / "prior").exists()


def test_a_start_from_a_checkpoint_of_dalle2_pytorch(embeddings: Path, tmp_path: Path) -> None:
    own = changed(SMALL_TRAIN, network__width=16, network__dim_head=64, steps=4)
    train(str(embeddings), str(tmp_path / "own"), own)
    convert(tmp_path / "own", tmp_path / "theirs.pth")
    init = {"path": str(tmp_path / "theirs.pth"), "config": str(tmp_path / "theirs.json")}
    settings = starting(tmp_path, init_from=init)
    train(str(embeddings), str(tmp_path / "tuned"), settings, limit=1)
    state = safetensors.torch.load_file(tmp_path / "tuned/state/step_000000001.safetensors")
    weights = safetensors.torch.load_file(tmp_path / "own/model.safetensors")
    assert (state["network.query"] - weights["query"]).abs().max() < 1e-2


def test_a_start_that_does_not_fit_is_refused(embeddings: Path, first: Path, tmp_path: Path) -> None:
    other = write_embeddings(tmp_path / "other", clip="another")
    with pytest.raises(InputError, match="was trained with another CLIP than the one that made"):
        train(str(other), str(tmp_path / "prior"), starting(first))
    with pytest.raises(InputError, match="no prior is there"):
        train(str(embeddings), str(tmp_path / "prior"), starting(tmp_path / "nowhere"))


@pytest.fixture
def imported(embeddings: Path, tmp_path: Path) -> Callable[[dict[str, str] | None], Path]:
    """Makes a prior that knows its CLIP by a name, or not at all, as conversions do."""

    def make(clip: dict[str, str] | None) -> Path:
        train(str(embeddings), str(tmp_path / "own"), changed(SMALL_TRAIN, steps=1))
        described = json.loads((tmp_path / "own/config.json").read_text())
        described.update(clip={}, clip_settings=clip or {}, trained_on=None)
        (tmp_path / "imported").mkdir()
        (tmp_path / "imported/config.json").write_text(json.dumps(described))
        shutil.copy(tmp_path / "own/model.safetensors", tmp_path / "imported")
        return tmp_path / "imported"

    return make


def test_a_start_that_names_another_clip_is_refused(
    embeddings: Path, imported: Callable[[dict[str, str] | None], Path], tmp_path: Path
) -> None:
    start = imported({"model": "ViT-B-32", "pretrained": "openai"})
    named = r"belongs to the CLIP ViT-B-32/openai, and .* was made by synthetic/none"
    with pytest.raises(InputError, match=named):
        train(str(embeddings), str(tmp_path / "prior"), starting(start))
    assert not (tmp_path / "prior").exists()


def test_a_start_that_names_the_same_clip_is_taken(
    embeddings: Path, imported: Callable[[dict[str, str] | None], Path], tmp_path: Path
) -> None:
    start = imported({"model": "synthetic-quickgelu", "pretrained": "none"})
    assert train(str(embeddings), str(tmp_path / "prior"), starting(start), limit=1).notes == []


def test_a_start_that_names_no_clip_is_taken_and_noted(
    embeddings: Path, imported: Callable[[dict[str, str] | None], Path], tmp_path: Path
) -> None:
    result = train(str(embeddings), str(tmp_path / "prior"), starting(imported(None)), limit=1)
    assert ["does not name its CLIP" in note for note in result.notes] == [True]


def test_a_start_is_held_against_the_clip_that_the_recipe_declares(
    embeddings_folder: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    """Of foreign embeddings the recipe alone says which CLIP made them: its weights decide."""
    settings = changed(SMALL_TRAIN, steps=2, batch_size=16)
    train(str(embeddings_folder), str(tmp_path / "first"), settings)
    folder = foreign(embeddings_folder, tmp_path / "foreign")
    clips = {}
    for name, factor in (("same", 1), ("other", 2)):
        shutil.copytree(tiny_clip, tmp_path / name)
        weights = safetensors.torch.load_file(tiny_clip / "open_clip_model.safetensors")
        weights["text_projection"] = weights["text_projection"] * factor
        (tmp_path / name / "open_clip_model.safetensors").unlink()
        torch.save(weights, tmp_path / name / "epoch_1.pt")
        clips[name] = ClipSettings(model=f"local-dir:{tmp_path / name}")
    start = starting(tmp_path / "first", steps=2, batch_size=16)
    assert train(str(folder), str(tmp_path / "prior"), start, clip=clips["same"]).notes == []
    with pytest.raises(InputError, match=r"belongs to the CLIP local-dir:.*, and .* was made by local-dir:.*/other"):
        train(str(folder), str(tmp_path / "another"), start, clip=clips["other"])


# text


def test_captions_through_the_text_tower_train_as_stored_token_states_do(
    embeddings_folder: Path, tmp_path: Path
) -> None:
    for condition in ("stored", "online"):
        settings = changed(
            SMALL_TRAIN, steps=8, text_condition=condition, network__max_text_len=6, optimiser__warmup_steps=0,
            batch_size=16, log_every=1,
        )  # fmt: skip
        train(str(embeddings_folder), str(tmp_path / condition), settings, ReadSettings(validation_fraction=0.2))
    stored, online = (log_of(tmp_path / name) for name in ("stored", "online"))
    for one, other in zip(stored, online, strict=True):
        for name in one.keys() & {"loss", "validation_loss"}:
            assert one[name] == pytest.approx(other[name], rel=2e-3)  # what is stored is rounded to float16
    assert load_prior(str(tmp_path / "stored")).config == load_prior(str(tmp_path / "online")).config


def test_another_clip_than_the_one_that_made_the_embeddings_is_refused(embeddings_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copied"
    shutil.copytree(embeddings_folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["about"]["clip"]["weights_sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    settings = changed(SMALL_TRAIN, text_condition="online", network__max_text_len=6)
    with pytest.raises(InputError, match="has other weights than the one that made the embeddings"):
        train(str(folder), str(tmp_path / "prior"), settings)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"text_condition": "pooled", "network": {"max_text_len": 3}}, "pooled has no token states"),
        ({"text_condition": "stored"}, "stored reads token states: set network.max_text_len"),
        ({"validate_draws": 1}, "needs at least 2 draws"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        TrainSettings.model_validate(values)


def foreign(embeddings: Path, folder: Path) -> Path:
    """The same embeddings as another tool leaves them."""
    for kind in ("img_emb", "text_emb", "metadata"):
        (folder / kind).mkdir(parents=True)
        for path in (embeddings / kind).iterdir():
            (folder / kind / path.name).write_bytes(path.read_bytes())
    return folder


def test_embeddings_of_other_tools_are_trained_on_once_their_clip_is_declared(
    embeddings_folder: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    folder = foreign(embeddings_folder, tmp_path / "foreign")
    settings = changed(SMALL_TRAIN, steps=3, batch_size=16)
    with pytest.raises(InputError, match=r"does not name its CLIP.*embed\.clip"):
        train(str(folder), str(tmp_path / "prior"), settings)
    clip = ClipSettings(model=f"local-dir:{tiny_clip}")
    train(str(folder), str(tmp_path / "prior"), settings, clip=clip)
    prior = load_prior(str(tmp_path / "prior"))
    assert prior.config.clip_settings["model"] == f"local-dir:{tiny_clip}"
    assert prior.sample(["a caption"], steps=2).shape == (1, prior.config.embed_dim)
    online = changed(settings, text_condition="online", network__max_text_len=5)
    train(str(folder), str(tmp_path / "online"), online, clip=clip)
    assert load_prior(str(tmp_path / "online")).config.token_width is not None


# trackers


def test_a_tracker_that_is_not_installed_is_named_before_anything_begins(
    embeddings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trackers._MODULES, "tensorboard", "no_such_module")
    settings = changed(SMALL_TRAIN, trackers=("tensorboard",))
    for start in (train, plan_train):
        with pytest.raises(SettingsError, match=r"tensorboard is not installed .*priorkit\[tensorboard\]"):
            start(str(embeddings), str(tmp_path / "prior"), settings, ReadSettings())  # type: ignore[operator]
    assert not (tmp_path / "prior").exists()


def test_trackers_need_a_local_folder(embeddings: Path) -> None:
    settings = changed(SMALL_TRAIN, trackers=("wandb",))
    with pytest.raises(SettingsError, match=r"memory:///?prior is none: set train\.tracker_folder"):
        train(str(embeddings), "memory://prior", settings)


TRACKED = """
    import sys
    from priorkit.prior.train.settings import TrainSettings
    from priorkit.prior.train.stage import train
    settings = TrainSettings.model_validate_json(sys.argv[3])
    for limit in (7, 12, None):
        train(sys.argv[1], sys.argv[2], settings, limit=limit)
        # as after a kill: the last checkpoint is lost, so that steps are made, and shown, again
        import pathlib
        states = sorted(pathlib.Path(sys.argv[2], "state").iterdir())
        if limit is not None:
            states[-1].unlink()
"""


def run_tracked(embeddings: Path, prior: Path, tracker: str) -> None:
    settings = changed(SMALL_TRAIN, trackers=(tracker,), log_every=1, validate_every=5)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TRACKED), str(embeddings), str(prior), settings.model_dump_json()],
        env={**environment(), "WANDB_MODE": "offline"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_tensorboard_shows_every_step_once(embeddings: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_tracked(embeddings, tmp_path, "tensorboard")
    shown = EventAccumulator(str(tmp_path / "trackers/tensorboard"))
    shown.Reload()
    losses = {line["step"]: line["loss"] for line in log_of(tmp_path) if "loss" in line}
    events = shown.Scalars("loss")
    assert [event.step for event in events] == list(losses) == list(range(1, 31))
    assert [event.value for event in events] == pytest.approx(list(losses.values()), rel=1e-6)
    assert [event.step for event in shown.Scalars("validation_loss")] == [5, 10, 15, 20, 25, 30]
    assert shown.Scalars("samples_per_second")[0].value > 0


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of a file of W&B: after 7 bytes LevelDB's log, blocks of 32 KiB of parts, each with a header."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the only part of its record, or the last
            yield whole
            whole = b""


@pytest.mark.slow
def test_wandb_offline_is_given_every_step_once(embeddings: Path, tmp_path: Path) -> None:
    from wandb.proto import wandb_internal_pb2

    run_tracked(embeddings, tmp_path, "wandb")
    files = sorted((tmp_path / "trackers/wandb").rglob("run-*.wandb"))
    assert len(files) == 3
    assert len({path.name for path in files}) == 1  # one run, gone on with twice
    losses: list[tuple[int, float]] = []
    for path in files:
        for data in wandb_records(path):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                values = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                losses.append((record.history.step.num, float(values["loss"])))
    expected = [(line["step"], line["loss"]) for line in log_of(tmp_path) if "loss" in line]
    assert sorted(losses) == [(step, pytest.approx(loss)) for step, loss in expected]
