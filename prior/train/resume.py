"""Going on with a training: what may change meanwhile, how that is recorded, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...pipeline.contract.commit import StageFolder, check_stage
from ...pipeline.contract.manifest import Manifest
from ...pipeline.contract.storage import Store
from ...pipeline.errors import FolderError
from ...pipeline.read.dataset import EmbeddingDataset
from ..model.folder import newest_step
from .job import STAGE, TrainJob, recorded_files
from .output import RECORD
from .settings import TrainSettings

_VALIDATION_ROWS = "train.validation_rows"


def check_training(store: Store, planned: Manifest, settings: TrainSettings, *, overwrite: bool) -> Manifest | None:
    """What a prior's folder holds of a training; FolderError if that cannot go on with these settings."""
    found = check_stage(store, planned, overwrite=overwrite, advice=_start_advice(store))
    if found is not None and not overwrite:
        _refuse_fewer_steps(store, found, settings.steps)
    return found


def refuse_other_embeddings(store: Store, found: Manifest | None, planned: Manifest, dataset: EmbeddingDataset) -> None:
    """Say what to do where only the embeddings differ: --overwrite of a whole run would discard them too."""
    if found is None or found.stage != STAGE or found.settings.get("embeddings") == planned.settings["embeddings"]:
        return
    if {**found.settings, "embeddings": None} == {**planned.settings, "embeddings": None}:
        before = found.settings.get("embeddings", {}).get("rows", "unknown")
        files, now = recorded_files(found), dataset.file_marks
        changed = [name for name in sorted(files) if name not in now or now[name].sha256 != files[name].sha256]
        named = f"; {changed[0]} has changed" if changed else ""
        raise FolderError(
            f"{store.url} was trained on other embeddings ({before} rows) than {dataset.store.url} holds now "
            f"({dataset.count} rows{named}); train into another folder (folders.prior), "
            "or discard that prior alone with `priorkit train RECIPE --overwrite`"
        )


def record_changes(folder: StageFolder, job: TrainJob) -> TrainJob:
    """Record which settings are others than before, and from which step on; returns the job that knows it.

    Changes after the newest checkpoint had no effect on what is kept of the training, and are forgotten.

    Raises:
        FolderError: a finished prior shall have more steps, and its checkpoints are gone.
    """
    about, step = folder.manifest.about, newest_step(folder.store, job.fingerprint)
    if step is None and RECORD in folder.manifest.shards and folder.manifest.shards[RECORD].input != job.record_input:
        raise FolderError(
            f"train.steps={job.settings.steps}: {folder.store.url} was trained for another number of steps, and its "
            f"checkpoints are gone; set it back, or {_start_advice(folder.store)}"
        )
    now = job.settings.recorded()
    started: dict[str, Any] = about.get("started_with", now) if step else now
    changes = [change for change in about.get("changes", []) if change["step"] < step] if step else []
    before = {**started, **{change["name"]: change["to"] for change in changes}}
    changes += [
        {"step": step, "name": name, "from": before.get(name), "to": value}
        for name, value in now.items()
        if before.get(name) != value
    ]
    folder.describe(started_with=started, changes=changes)
    best_since = max((change["step"] for change in changes if change["name"] == _VALIDATION_ROWS), default=0)
    return dataclasses.replace(job, best_since=best_since)


def surplus_note(store: Store, found: Manifest | None, steps: int) -> str | None:
    """A note on a finished prior that has done more steps than it is asked for, so that nothing is to be done."""
    if found is None or RECORD not in found.shards:
        return None
    done = newest_step(store, found.settings_fingerprint)
    if done is None or done <= steps:
        return None
    return f"{store.url} is trained to its end, {done:,} steps, more than train.steps={steps:,}: nothing to do"


def _refuse_fewer_steps(store: Store, found: Manifest, steps: int) -> None:
    done = newest_step(store, found.settings_fingerprint)
    if done is not None and done > steps and RECORD not in found.shards:
        raise FolderError(
            f"train.steps={steps}: {store.url} has done {done} steps already; set at least that many, or "
            f"{_start_advice(store)}"
        )


def _start_advice(store: Store) -> str:
    return f"start another prior from its weights (--init-from {store.url} --prior NEW)"
