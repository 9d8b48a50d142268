"""The description of a training: what it contains, what it depends on, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from priorkit.pipeline.compute.settings import ComputeSettings
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import InputError, SettingsError
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.prior.model.config import TrainedOn
from priorkit.prior.train.job import TrainJob, make_job, resolve_training
from priorkit.prior.train.settings import TrainSettings

from ....integration.synthetic import SMALL_RAW, changed, write_embeddings
from .conftest import READ

MakeJob = Callable[..., TrainJob]


def test_the_config_is_that_of_the_embeddings_and_the_network(
    make_train_job: MakeJob, dataset: EmbeddingDataset
) -> None:
    job = make_train_job(network__max_text_len=3)
    assert (job.config.embed_dim, job.config.token_width) == (16, 6)
    assert job.config.clip == dataset.clip
    assert job.config.clip_settings == {"model": "synthetic", "pretrained": "none"}
    assert job.config.trained_on == TrainedOn(embeddings=dataset.content_fingerprint, read=READ.identity())
    assert job.identity["embeddings"] == {"rows": 60, "sha256": dataset.content_fingerprint}
    assert "clip" not in job.identity
    assert make_train_job().config.token_width is None


def test_a_run_ends_at_its_limit_or_its_last_step(make_train_job: MakeJob) -> None:
    assert [make_train_job(limit=limit).last_step for limit in (None, 4, 9)] == [6, 4, 6]


def test_the_fingerprint_follows_what_changes_weights(make_train_job: MakeJob) -> None:
    job = make_train_job()
    assert make_train_job(limit=2, accumulate=2, log_every=1).fingerprint == job.fingerprint
    for changes in ({"seed": 1}, {"batch_size": 9}, {"network__depth": 2}, {"steps": 7}):
        assert make_train_job(**changes).fingerprint != job.fingerprint, changes


def test_steps_of_a_constant_rate_are_part_of_the_record_only(make_train_job: MakeJob) -> None:
    short, long = (make_train_job(optimiser__decay="constant", steps=steps) for steps in (6, 7))
    assert short.fingerprint == long.fingerprint
    assert short.record_input != long.record_input
    assert make_train_job().record_input == make_train_job().input


def test_embeddings_that_changed_are_not_opened(settings: TrainSettings, tmp_path: Path) -> None:
    folder = write_embeddings(tmp_path / "embeddings", rows=20)
    dataset = EmbeddingDataset(str(folder), READ)
    job = make_job(dataset, Store(str(tmp_path / "prior")), settings, ComputeSettings(), None)
    assert job.open_embeddings().count == 20
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match="is not the same here as where the training was started"):
        job.open_embeddings()


def test_embeddings_without_a_clip_need_one(settings: TrainSettings, tmp_path: Path) -> None:
    folder = write_embeddings(tmp_path / "embeddings", rows=20)
    (folder / "manifest.json").unlink()
    dataset = EmbeddingDataset(str(folder), READ)
    with pytest.raises(InputError, match="does not name its CLIP: it has no manifest"):
        make_job(dataset, Store(str(tmp_path / "prior")), settings, ComputeSettings(), None)


def test_token_states_that_are_not_stored_are_refused(settings: TrainSettings, tmp_path: Path) -> None:
    dataset = EmbeddingDataset(str(write_embeddings(tmp_path / "embeddings", rows=20)), READ)
    with pytest.raises(InputError, match=r"up to 3 token states, but .* stores none; embed with"):
        make_job(
            dataset, Store(str(tmp_path)), changed(settings, network__max_text_len=3), ComputeSettings(), None
        )  # fmt: skip


def test_a_tracker_without_a_local_folder_is_refused(settings: TrainSettings, dataset: EmbeddingDataset) -> None:
    with pytest.raises(SettingsError, match=r"set train\.tracker_folder"):
        make_job(
            dataset, Store("memory://prior"), changed(settings, trackers=["tensorboard"]), ComputeSettings(), None
        )  # fmt: skip


def test_a_ray_worker_has_as_many_threads_as_cpus(settings: TrainSettings) -> None:
    for cpus, threads in ((3, 3), (0.5, 1)):
        compute = ComputeSettings(backend="ray", cpus_per_worker=cpus)
        assert resolve_training(changed(settings, threads=0), compute).threads == threads
    assert resolve_training(settings, ComputeSettings()).threads == 1


# priors of embeddings that are not normalised


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_embeddings(tmp_path / "raw", rows=20, token_states=True, raw=True)


def make_raw_job(folder: Path, **values: Any) -> TrainJob:
    dataset = EmbeddingDataset(str(folder), READ)
    return make_job(dataset, Store(f"{folder}/../prior"), changed(SMALL_RAW, **values), ComputeSettings(), None)


def test_a_job_has_the_empty_inputs_of_the_embeddings(raw: Path) -> None:
    empty = make_raw_job(raw).empty
    assert empty is not None
    assert empty.token_states is not None
    assert empty.token_states.shape == (2, 6)


def test_embeddings_without_norms_are_refused(tmp_path: Path) -> None:
    """Before their token states, which alone would not help."""
    folder = write_embeddings(tmp_path / "embeddings", rows=20)
    with pytest.raises(InputError, match=r"stores no norms of its image embeddings .*has no column 'image_norm'"):
        make_raw_job(folder)


def test_the_empty_text_is_needed_only_if_texts_are_dropped(raw: Path) -> None:
    (raw / "empty_inputs.safetensors").unlink()
    with pytest.raises(InputError, match=r"empty_inputs\.safetensors is missing; run `priorkit embed` again"):
        make_raw_job(raw)
    manifest = json.loads((raw / "manifest.json").read_text())
    del manifest["about"]["empty_inputs"]
    (raw / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"output for the empty text, .*; run `priorkit embed` .*text_drop=0"):
        make_raw_job(raw)
    assert make_raw_job(raw, diffusion__text_drop=0).empty is None
