"""The subject of an evaluation: its kind, its identity, its splits, and the weights that are loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from priorkit.pipeline.contract.commit import ShardCommit, open_stage
from priorkit.pipeline.contract.manifest import Manifest, fingerprint
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import InputError, PriorkitError, SettingsError
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.prior.evaluate.subject import TRAINING_ROWS_WARNINGS, PriorSource, find_subject
from priorkit.prior.interchange.dalle2_settings import to_dalle2_config
from priorkit.prior.interchange.dalle2_weights import export_weights
from priorkit.prior.model.config import PriorConfig, TrainedOn
from priorkit.prior.model.folder import CONFIG_NAME, WEIGHTS_NAME, save_prior
from priorkit.prior.model.prior import Prior
from priorkit.prior.sampling.settings import SampleSettings

from ..embeddings import DIM, SPLITS, write_embeddings
from ..interchange.diffusers.folders import make_weights, write_pipeline
from ..reference import randomise

MakePrior = Callable[..., Prior]


@pytest.fixture
def dataset(tmp_path: Path) -> EmbeddingDataset:
    return EmbeddingDataset(str(write_embeddings(tmp_path / "embeddings")), SPLITS)


@pytest.fixture
def prior(make_prior: MakePrior) -> Prior:
    made = make_prior(embed_dim=DIM)
    return changed(made, clip={}, clip_settings={})


def changed(prior: Prior, **values: Any) -> Prior:
    """The same weights under changed settings."""
    config = PriorConfig(
        **{**{name: getattr(prior.config, name) for name in type(prior.config).model_fields}, **values}
    )
    return Prior(config, prior.network, prior.normaliser)


def write_folder(prior: Prior, path: Path) -> str:
    save_prior(Store(str(path)).create, prior.config, prior.network, prior.normaliser)
    return str(path)


def write_trained(prior: Prior, path: Path, embeddings: str, *, has_ended: bool = True) -> str:
    """A folder as `train` writes it, without checkpoints."""
    settings = {"embeddings": {"sha256": embeddings}, "read": SPLITS.splits()}
    with open_stage(Store(str(path)), Manifest("train", settings, input={})) as stage:
        if has_ended:
            commit = ShardCommit(stage.store, "prior", input="1", settings=stage.manifest.settings_fingerprint)
            save_prior(commit.create, prior.config, prior.network, prior.normaliser)
            stage.add(commit.commit(rows=1))
            stage.finish()
    return str(path)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_predictions_are_identified_by_their_bytes(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 2)))
    found = find_subject(PriorSource(str(tmp_path / "a.npy")), None)
    assert (found.kind, found.content, found.is_predictions) == ("predictions", sha256(tmp_path / "a.npy"), True)
    assert (found.read, found.trained_on, found.trained) == (ReadSettings(), None, None)


def test_a_plain_prior_is_identified_by_its_two_files(prior: Prior, tmp_path: Path) -> None:
    path = write_folder(prior, tmp_path / "prior")
    found = find_subject(PriorSource(path), None)
    expected = fingerprint({name: sha256(tmp_path / "prior" / name) for name in (CONFIG_NAME, WEIGHTS_NAME)})
    assert (found.kind, found.content, found.trained_on) == ("prior", expected, None)


def test_a_trained_prior_is_the_same_subject_as_its_copy_without_a_manifest(prior: Prior, tmp_path: Path) -> None:
    trained = find_subject(PriorSource(write_trained(prior, tmp_path / "trained", "abc")), None)
    copied = find_subject(PriorSource(write_folder(prior, tmp_path / "copied")), None)
    assert (trained.kind, copied.kind) == ("prior, trained here", "prior")
    assert trained.content == copied.content
    assert trained.trained_on == TrainedOn(embeddings="abc", read=SPLITS.splits())


def test_other_weights_are_another_subject(prior: Prior, tmp_path: Path) -> None:
    first = find_subject(PriorSource(write_folder(prior, tmp_path / "a")), None).content
    randomise(prior.network, 8)
    assert find_subject(PriorSource(write_folder(prior, tmp_path / "b")), None).content != first


def test_the_splits_are_those_of_the_training_unless_others_are_given(prior: Prior, tmp_path: Path) -> None:
    trained = write_trained(prior, tmp_path / "trained", "abc")
    known = changed(prior, trained_on=TrainedOn(embeddings="abc", read=SPLITS.splits()))
    for path in (trained, write_folder(known, tmp_path / "copied")):
        assert find_subject(PriorSource(path), None).read.splits() == SPLITS.splits()
        other = ReadSettings(test_fraction=0.5)
        assert find_subject(PriorSource(path), other).read == other
    assert find_subject(PriorSource(write_folder(prior, tmp_path / "plain")), None).read == ReadSettings()


def test_a_training_that_has_not_ended_has_no_content(prior: Prior, tmp_path: Path) -> None:
    found = find_subject(PriorSource(write_trained(prior, tmp_path / "prior", "abc", has_ended=False)), None)
    assert found.content == ""
    with pytest.raises(InputError, match="the prior's training has not ended"):
        found.require_finished()
    find_subject(PriorSource(write_folder(prior, tmp_path / "whole")), None).require_finished()


@pytest.fixture
def pth(make_prior: MakePrior, tmp_path: Path) -> PriorSource:
    """A `.pth` of DALLE2-pytorch whose averaged and trained weights differ, with its settings."""
    prior = make_prior(2, embed_dim=8, token_width=8, width=8, dim_head=8)
    averaged = export_weights(prior)
    randomise(prior.network, 5)
    content = {"version": "1.15.6", "model": export_weights(prior), "ema_model": averaged}
    torch.save(content, tmp_path / "a.pth")
    (tmp_path / "a.json").write_text(json.dumps({"prior": to_dalle2_config(prior.config)}))
    return PriorSource(str(tmp_path / "a.pth"), str(tmp_path / "a.json"))


def test_a_checkpoint_is_identified_by_its_bytes_and_by_how_it_is_read(pth: PriorSource) -> None:
    assert pth.config is not None
    found = find_subject(pth, None)
    settings = json.loads(Path(pth.config).read_text())
    assert (found.kind, found.content) == ("checkpoint", fingerprint([sha256(Path(pth.path)), settings, None]))
    other = find_subject(PriorSource(pth.path, pth.config, "1.14.0"), None)
    assert other.content == fingerprint([sha256(Path(pth.path)), settings, "1.14.0"])


def test_a_source_loads_the_weights_that_are_named(pth: PriorSource) -> None:
    names = ("ema", "online")
    content = torch.load(pth.path)
    for name, key in zip(names, ("ema_model", "model"), strict=True):
        loaded = pth.load(name)
        assert torch.equal(loaded.network.query, content[key]["net.learned_query"])
        assert loaded.config.network.function_version == "1.15.6"
    versioned = PriorSource(pth.path, pth.config, "1.14.0").load()
    assert versioned.config.network.function_version == "1.14.0"


def test_options_of_a_checkpoint_belong_to_checkpoints(pth: PriorSource, prior: Prior, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"a\.pth: give config="):
        find_subject(PriorSource(pth.path), None)
    folder = write_folder(prior, tmp_path / "prior")
    with pytest.raises(SettingsError, match="config= belongs to checkpoints"):
        find_subject(PriorSource(folder, config=pth.config), None)
    with pytest.raises(SettingsError, match="function_version= belongs to checkpoints"):
        find_subject(PriorSource(folder, function_version="1.14.0"), None)


def test_parameters_are_those_of_one_network(pth: PriorSource, prior: Prior, tmp_path: Path) -> None:
    folder = find_subject(PriorSource(write_folder(prior, tmp_path / "prior")), None)
    expected = sum(value.numel() for value in prior.network.parameters())
    assert expected <= folder.parameters("ema") <= 1.5 * expected + 1000  # the header counts too
    loaded = pth.load()
    assert find_subject(pth, None).parameters("ema") == sum(v.numel() for v in loaded.network.parameters())


@pytest.mark.parametrize("name", ["a.npy", "nothing"])
def test_nothing_to_evaluate_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(PriorkitError, match=name):
        find_subject(PriorSource(str(tmp_path / name)), None)


def test_training_rows_are_known_held_out_or_of_other_embeddings(
    prior: Prior, dataset: EmbeddingDataset, tmp_path: Path
) -> None:
    def found(name: str, embeddings: str | None) -> str:
        known = None if embeddings is None else TrainedOn(embeddings=embeddings, read=SPLITS.splits())
        path = write_folder(changed(prior, trained_on=known), tmp_path / name)
        return find_subject(PriorSource(path), SPLITS).training_rows(dataset)

    assert found("a", dataset.content_fingerprint) == "held out"
    assert found("b", "other") == "of other embeddings"
    assert found("c", None) == "unknown"
    assert set(TRAINING_ROWS_WARNINGS) == {"of other embeddings", "unknown"}


def test_other_splits_than_those_of_the_training_are_refused(
    prior: Prior, dataset: EmbeddingDataset, tmp_path: Path
) -> None:
    known = TrainedOn(embeddings=dataset.content_fingerprint, read=SPLITS.splits())
    path = write_folder(changed(prior, trained_on=known), tmp_path / "prior")
    other = ReadSettings(validation_fraction=0.2, test_fraction=0.5)
    with pytest.raises(SettingsError, match=r"other splits would mix in rows that it was trained on; use the same"):
        find_subject(PriorSource(path), other).training_rows(EmbeddingDataset(dataset.store.url, other))


def test_the_description_has_the_options_of_checkpoints_only(
    pth: PriorSource, prior: Prior, dataset: EmbeddingDataset, tmp_path: Path
) -> None:
    subject = find_subject(PriorSource(write_folder(prior, tmp_path / "prior")), None)
    assert subject.described(dataset) == {
        "path": str(tmp_path / "prior"), "kind": "prior", "content": subject.content, "training_rows": "unknown"
    }  # fmt: skip
    subject = find_subject(pth, None)
    assert subject.described(dataset) == {
        "path": pth.path, "kind": "checkpoint", "config": pth.config, "function_version": None,
        "content": subject.content, "training_rows": "unknown",
    }  # fmt: skip


def test_a_prior_that_fits_is_accepted(prior: Prior, dataset: EmbeddingDataset, tmp_path: Path) -> None:
    subject = find_subject(PriorSource(write_folder(prior, tmp_path / "prior")), None)
    subject.check(dataset, [SampleSettings(steps=4)], ["ema"])


def test_missing_weights_are_named_in_any_order(prior: Prior, dataset: EmbeddingDataset, tmp_path: Path) -> None:
    subject = find_subject(PriorSource(write_folder(prior, tmp_path / "prior")), None)
    for weights in ("online", "best"):
        for order in (("ema", weights), (weights, "ema")):
            with pytest.raises(InputError, match=f"weights='{weights}' are "):
                subject.check(dataset, [], order)


def test_every_sampling_setting_is_checked(prior: Prior, dataset: EmbeddingDataset, tmp_path: Path) -> None:
    subject = find_subject(PriorSource(write_folder(prior, tmp_path / "prior")), None)
    with pytest.raises(SettingsError, match="steps"):
        subject.check(dataset, [SampleSettings(steps=4), SampleSettings(steps=101)], ["ema"])


def test_embeddings_of_another_size_are_refused(
    make_prior: MakePrior, dataset: EmbeddingDataset, tmp_path: Path
) -> None:
    subject = find_subject(PriorSource(write_folder(make_prior(), tmp_path / "prior")), None)
    with pytest.raises(InputError, match=r"holds embeddings of 4, .* predicts 8"):
        subject.check(dataset, [], ["ema"])


def test_token_states_that_are_not_stored_are_named(
    make_prior: MakePrior, dataset: EmbeddingDataset, tmp_path: Path
) -> None:
    subject = find_subject(PriorSource(write_folder(make_prior(4, embed_dim=DIM), tmp_path / "prior")), None)
    with pytest.raises(InputError, match=r"stores no token states, .* takes those of 6; embed with token_states: true"):
        subject.check(dataset, [], ["ema"])


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_a_trained_prior_that_was_changed_is_refused(
    name: str, prior: Prior, dataset: EmbeddingDataset, tmp_path: Path
) -> None:
    path = write_trained(prior, tmp_path / "prior", dataset.content_fingerprint)
    subject = find_subject(PriorSource(path), None)
    subject.check(dataset, [], ["ema"])
    with (tmp_path / "prior" / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(InputError, match=f"prior/{name} differs from what was trained"):
        subject.check(dataset, [], ["ema"])


def test_a_folder_of_diffusers_is_a_prior_with_its_scheduler(tmp_path: Path) -> None:
    path = tmp_path / "pipeline"
    write_pipeline(path)
    subject = find_subject(PriorSource(str(path)), None)
    assert (subject.kind, subject.trained_on) == ("prior", None)
    assert subject.parameters("ema") == sum(
        value.numel() for name, value in make_weights().items() if not name.startswith("clip_")
    )
    scheduler = path / "scheduler/scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("5.0", "6.0"))
    assert find_subject(PriorSource(str(path)), None).content != subject.content
