"""Settings that may change when a training is resumed, and their record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from priorkit.pipeline.contract.commit import open_stage
from priorkit.pipeline.contract.manifest import Manifest, ShardRecord
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import FolderError
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.prior.model.folder import TrainState, save_state
from priorkit.prior.train.job import TrainJob
from priorkit.prior.train.resume import check_training, record_changes, refuse_other_embeddings, surplus_note

MakeJob = Callable[..., TrainJob]


def checkpoint(job: TrainJob, step: int) -> None:
    state = TrainState(step, network={}, average={}, optimiser={}, normaliser={})
    save_state(Store(job.prior), state, job.fingerprint, keep=2)


def record(job: TrainJob) -> tuple[TrainJob, list[tuple[int, str, object, object]]]:
    """Record changes; return the job and what the manifest says."""
    with open_stage(Store(job.prior), job.manifest()) as folder:
        job = record_changes(folder, job)
        changes = folder.manifest.about["changes"]
    return job, [(change["step"], change["name"], change["from"], change["to"]) for change in changes]


def test_a_change_is_recorded_at_the_newest_checkpoint(make_train_job: MakeJob) -> None:
    assert record(make_train_job())[1] == []
    checkpoint(make_train_job(), 4)
    job, changes = record(make_train_job(accumulate=2))
    assert changes == [(4, "train.accumulate", 1, 2)]
    assert job.best_since == 0
    checkpoint(job, 5)
    assert record(make_train_job(accumulate=2))[1] == changes  # no second change
    assert record(make_train_job(accumulate=1))[1] == [*changes, (5, "train.accumulate", 2, 1)]


def test_a_change_after_the_newest_checkpoint_is_dropped(make_train_job: MakeJob) -> None:
    record(make_train_job())
    checkpoint(make_train_job(), 4)
    record(make_train_job(accumulate=2))
    assert record(make_train_job(accumulate=3))[1] == [(4, "train.accumulate", 1, 3)]
    assert record(make_train_job(accumulate=1))[1] == []


def test_losses_are_comparable_since_the_last_change_of_validation_rows(make_train_job: MakeJob) -> None:
    record(make_train_job())
    checkpoint(make_train_job(), 4)
    record(make_train_job(validation_rows=5))
    checkpoint(make_train_job(), 5)
    job, changes = record(make_train_job(validation_rows=5, accumulate=2))
    assert [change[:2] for change in changes] == [(4, "train.validation_rows"), (5, "train.accumulate")]
    assert job.best_since == 4


def with_record(job: TrainJob) -> Manifest:
    manifest = job.manifest()
    manifest.shards["prior"] = ShardRecord("prior", 1, job.record_input, manifest.settings_fingerprint, {})
    return manifest


def test_more_steps_need_a_checkpoint(make_train_job: MakeJob) -> None:
    job = make_train_job(optimiser__decay="constant")
    longer = make_train_job(optimiser__decay="constant", steps=9)
    assert longer.record_input != job.record_input
    with open_stage(Store(job.prior), job.manifest()) as folder:
        folder.manifest.shards.update(with_record(job).shards)
        record_changes(folder, job)  # nothing left to do
        with pytest.raises(FolderError, match=r"train.steps=9: .* checkpoints are gone; set it back, or start another"):
            record_changes(folder, longer)


def test_a_finished_prior_of_more_steps_is_noted(job: TrainJob) -> None:
    store = Store(job.prior)
    checkpoint(job, 6)
    assert surplus_note(store, None, 5) is None
    assert surplus_note(store, job.manifest(), 5) is None  # not finished
    assert surplus_note(store, with_record(job), 6) is None
    note = surplus_note(store, with_record(job), 5)
    assert note is not None
    assert note.endswith("is trained to its end, 6 steps, more than train.steps=5: nothing to do")


def test_fewer_steps_than_are_done_are_refused(make_train_job: MakeJob) -> None:
    job = make_train_job(optimiser__decay="constant")
    store, manifest = Store(job.prior), job.manifest()
    assert check_training(store, manifest, job.settings, overwrite=False) is None
    record(job)
    checkpoint(job, 4)
    for steps in (4, 5):
        settings = make_train_job(optimiser__decay="constant", steps=steps).settings
        assert check_training(store, manifest, settings, overwrite=False) is not None
    fewer = make_train_job(optimiser__decay="constant", steps=3).settings
    with pytest.raises(FolderError, match=r"train.steps=3: .* has done 4 steps already; set at least that many"):
        check_training(store, manifest, fewer, overwrite=False)
    check_training(store, manifest, fewer, overwrite=True)


def test_other_embeddings_are_refused_with_advice(job: TrainJob, dataset: EmbeddingDataset) -> None:
    store, planned = Store(job.prior), job.manifest()
    refuse_other_embeddings(store, None, planned, dataset)
    refuse_other_embeddings(store, planned, planned, dataset)
    other = Manifest("train", {**planned.settings, "embeddings": {"rows": 3, "sha256": "x"}}, input={})
    with pytest.raises(FolderError, match=r"trained on other embeddings \(3 rows\) than .* \(60 rows\); train into"):
        refuse_other_embeddings(store, other, planned, dataset)
    # where other settings differ too, the usual refusal names them
    settings = {**other.settings, "read": {}}
    refuse_other_embeddings(store, Manifest("train", settings, input={}), planned, dataset)
    refuse_other_embeddings(store, Manifest("embed", other.settings, input={}), planned, dataset)


def test_a_folder_of_another_stage_is_refused(job: TrainJob) -> None:
    Path(job.prior).mkdir()
    with open_stage(Store(job.prior), Manifest("embed", {}, input={})):
        pass
    with pytest.raises(FolderError):
        check_training(Store(job.prior), job.manifest(), job.settings, overwrite=False)
