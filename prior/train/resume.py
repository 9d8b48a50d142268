"""Rules for resuming training: which settings may change, and how the manifest records each change."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...pipeline.contract.commit import StageFolder, check_stage
from ...pipeline.contract.manifest import Manifest
from ...pipeline.contract.storage import Store
from ...pipeline.errors import FolderError
from ...pipeline.read.dataset import EmbeddingDataset
from ..model.folder import newest_step
from ..model.train_manifest import RECORD, STAGE, recorded_files
from .job import TrainJob
from .settings import TrainSettings

_VALIDATION_ROWS = "train.validation_rows"
"""Name of the setting `validation_rows` in a recipe and in the manifest.

Validation losses before and after a change of this setting are not comparable.
"""


def check_training(store: Store, planned: Manifest, settings: TrainSettings, *, overwrite: bool) -> Manifest | None:
    """Check that training can start or resume in a prior folder. Return the folder's manifest, or None if it has none.

    Args:
        store: prior folder.
        planned: manifest of the training run that is about to start.
        overwrite: True if the content of the folder will be discarded; an existing run with other settings is then
            accepted.

    Raises:
        FolderError: the folder contains unrelated files or the result of another stage, or its training run cannot be
            resumed with these settings.
    """
    manifest = check_stage(store, planned, overwrite=overwrite, advice=_start_advice(store))
    if manifest is not None and not overwrite:
        _refuse_fewer_steps(store, manifest, settings.steps)
    return manifest


def refuse_other_embeddings(
    store: Store, recorded: Manifest | None, planned: Manifest, dataset: EmbeddingDataset
) -> None:
    """Raise a FolderError if the recorded training run differs from the planned one only in its embeddings.

    The error message suggests two fixes: another prior folder, or `priorkit train` with `--overwrite`. It names the
    `train` command because `--overwrite` on a run of all stages would discard the embeddings too.

    Args:
        store: prior folder.
        recorded: manifest in the prior folder, or None if the folder has no manifest. No error is raised for None.
        planned: manifest of the training run that is about to start.
        dataset: embeddings to train on.
    """
    if recorded is None or recorded.stage != STAGE:
        return
    if recorded.settings.get("embeddings") == planned.settings["embeddings"]:
        return
    if {**recorded.settings, "embeddings": None} == {**planned.settings, "embeddings": None}:
        rows_before = recorded.settings.get("embeddings", {}).get("rows", "unknown")
        before, now = recorded_files(recorded), dataset.file_marks
        changed = [name for name in sorted(before) if name not in now or now[name].sha256 != before[name].sha256]
        named = f"; {changed[0]} has changed" if changed else ""
        raise FolderError(
            f"{store.url} was trained on other embeddings ({rows_before} rows) than {dataset.store.url} holds now "
            f"({dataset.count} rows{named}); train into another folder (folders.prior), "
            "or discard that prior alone with `priorkit train RECIPE --overwrite`"
        )


def record_changes(folder: StageFolder, job: TrainJob) -> TrainJob:
    """Record in the manifest which settings have changed since training started, and at which step each changed.

    Training resumes from the newest checkpoint, and repeats any later steps with the current settings. A change that an
    earlier run recorded at or after the step of this checkpoint no longer applies, so it is removed from the manifest.

    Returns:
        The job, with `best_since` set to the step at which `validation_rows` last changed.

    Raises:
        FolderError: `steps` has changed for a finished prior whose checkpoints are missing.
    """
    about, step = folder.manifest.about, newest_step(folder.store, job.fingerprint)
    if step is None and RECORD in folder.manifest.shards and folder.manifest.shards[RECORD].input != job.record_input:
        raise FolderError(
            f"train.steps={job.settings.steps}: {folder.store.url} was trained with other steps or patience, and its "
            f"checkpoints are gone; set it back, or {_start_advice(folder.store)}"
        )
    now = job.settings.recorded()
    started: dict[str, Any] = about.get("started_with", now) if step else now
    changes = [change for change in about.get("changes", []) if change["step"] < step] if step else []
    before = {**started, **{change["name"]: change["to"] for change in changes}}
    changes += [
        {"step": step, "name": name, "from": before.get(name), "to": now.get(name)}
        for name in (*now, *(name for name in before if name not in now))
        if before.get(name) != now.get(name)
    ]
    folder.describe(started_with=started, changes=changes)
    best_since = max((change["step"] for change in changes if change["name"] == _VALIDATION_ROWS), default=0)
    return dataclasses.replace(job, best_since=best_since)


def surplus_note(store: Store, recorded: Manifest | None, steps: int) -> str | None:
    """Return a note that nothing is left to train, if a finished prior was trained for more than `steps` steps.

    Otherwise, return None.

    Args:
        store: prior folder.
        recorded: manifest in the prior folder, or None if the folder has no manifest.
        steps: number of steps in the current settings.
    """
    if recorded is None or RECORD not in recorded.shards:
        return None
    done = newest_step(store, recorded.settings_fingerprint)
    if done is None or done <= steps:
        return None
    return f"{store.url} is trained to its end, {done:,} steps, more than train.steps={steps:,}: nothing to do"


def _refuse_fewer_steps(store: Store, recorded: Manifest, steps: int) -> None:
    """Raise a FolderError if an unfinished training run has already completed more than `steps` steps.

    The number of completed steps is taken from the newest checkpoint of that run.
    """
    done = newest_step(store, recorded.settings_fingerprint)
    if done is not None and done > steps and RECORD not in recorded.shards:
        raise FolderError(
            f"train.steps={steps}: {store.url} has done {done} steps already; set at least that many, or "
            f"{_start_advice(store)}"
        )


def _start_advice(store: Store) -> str:
    """Return a phrase for error messages that suggests training a new prior from the weights in this folder."""
    return f"start another prior from its weights (--init-from {store.url} --prior NEW)"
