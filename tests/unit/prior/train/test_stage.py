"""Plans, runs and refusals of the stage in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from priorkit.pipeline.compute.settings import ComputeSettings
from priorkit.pipeline.errors import FolderError, InputError, Interrupted
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.prior.model.config import build_network
from priorkit.prior.train.job import TrainJob
from priorkit.prior.train.settings import TrainSettings
from priorkit.prior.train.stage import check_prior_folder, plan_train, train

from ....integration.synthetic import changed, write_embeddings
from .conftest import READ

MakeJob = Callable[..., TrainJob]


def test_a_plan_counts_the_remaining_steps(
    embeddings: Path, settings: TrainSettings, make_train_job: MakeJob, tmp_path: Path
) -> None:
    prior = str(tmp_path / "prior")
    plan = plan_train(str(embeddings), prior, settings, READ)
    assert (plan.stage, plan.units, plan.pending_units, plan.pending_rows) == ("train", 6, 6, 48)
    weights = sum(value.numel() for value in build_network(make_train_job().config).parameters())
    assert plan.bytes_needed == weights * 4 * 10  # prior and best, and two checkpoints of four copies
    assert not (tmp_path / "prior").exists()
    result = train(str(embeddings), prior, settings, READ, limit=4)
    assert (result.units, result.done_now, result.unit) == (6, 4, "steps")
    assert plan_train(str(embeddings), prior, settings, READ).pending_units == 2
    assert train(str(embeddings), prior, settings, READ).done_now == 2
    plan = plan_train(str(embeddings), prior, settings, READ)
    assert (plan.pending_units, plan.pending_rows, plan.bytes_needed) == (0, 0, 0)
    assert plan_train(str(embeddings), prior, settings, READ, overwrite=True).pending_units == 6
    assert train(str(embeddings), prior, settings, READ).done_now == 0


def test_a_plan_says_that_the_text_tower_is_left_out(embeddings: Path, settings: TrainSettings, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pt")
    shutil.copytree(embeddings, tmp_path / "embeddings")
    manifest = json.loads((tmp_path / "embeddings/manifest.json").read_text())
    manifest["about"]["clip_settings"] = {"model": f"openai_clip:{tmp_path / 'w.pt'}", "pretrained": None}
    (tmp_path / "embeddings/manifest.json").write_text(json.dumps(manifest))
    online = changed(settings, text_condition="online")
    plan = plan_train(str(tmp_path / "embeddings"), str(tmp_path / "prior"), online, READ)
    (note,) = plan.notes
    assert note.startswith("the time does not include the text tower of the CLIP openai_clip:")
    assert plan_train(str(tmp_path / "embeddings"), str(tmp_path / "prior"), settings, READ).notes == []


def test_progress_ends_at_the_last_step(embeddings: Path, settings: TrainSettings, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    train(
        str(embeddings), str(tmp_path / "prior"), settings, READ,
        progress=lambda done, total, note: seen.append((done, total)),
    )  # fmt: skip
    assert seen[-1] == (6, 6)
    assert (tmp_path / "prior" / "model.safetensors").exists()


def test_a_request_to_stop_interrupts(embeddings: Path, settings: TrainSettings, tmp_path: Path) -> None:
    calls = iter([False, False, True])
    with pytest.raises(Interrupted, match="stopped after step 2 of 6; the same command resumes from there"):
        train(str(embeddings), str(tmp_path / "prior"), settings, READ, should_stop=lambda: next(calls))
    assert train(str(embeddings), str(tmp_path / "prior"), settings, READ).done_now == 4


def test_an_empty_training_split_is_refused(settings: TrainSettings, tmp_path: Path) -> None:
    embeddings = write_embeddings(tmp_path / "embeddings", rows=3)
    read = ReadSettings(validation_fraction=0.49, test_fraction=0.5)
    with pytest.raises(InputError, match="no row is left to train on; lower the fractions in `read`"):
        train(str(embeddings), str(tmp_path / "prior"), settings, read)


def test_a_folder_is_checked_without_its_embeddings(embeddings: Path, settings: TrainSettings, tmp_path: Path) -> None:
    prior, compute = str(tmp_path / "prior"), ComputeSettings()
    check_prior_folder(prior, settings, READ, compute)
    train(str(embeddings), prior, settings, READ, limit=2)
    check_prior_folder(prior, settings, READ, compute)
    for other, read in ((changed(settings, seed=3), READ), (settings, ReadSettings(validation_fraction=0.1))):
        with pytest.raises(FolderError):
            check_prior_folder(prior, other, read, compute)
        check_prior_folder(prior, other, read, compute, overwrite=True)
