"""The same loop on several ranks, in processes with a gloo group and no Ray: the same losses, whatever divides what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from priorkit.pipeline.compute.settings import ComputeSettings
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import PriorkitError
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.prior.model.folder import load_state
from priorkit.prior.train.job import TrainJob, make_job
from priorkit.prior.train.loop import run_loop
from priorkit.prior.train.settings import TrainSettings
from priorkit.prior.train.step import Learner

from .synthetic import SMALL_RAW, SMALL_TRAIN, changed, write_embeddings

pytestmark = pytest.mark.slow
HUNDRED = changed(SMALL_TRAIN, steps=100, log_every=1, checkpoint_every=1000, batch_size=61)
READ = ReadSettings(validation_fraction=0.1)


class Seen:
    """A watch that stops after so many reports, and notes the rows of each step."""

    def __init__(self, stop_after: int | None = None) -> None:
        self._left = stop_after

    def report(self, step: int, note: str) -> None:
        pass

    def should_stop(self) -> bool:
        if self._left is None:
            return False
        self._left -= 1
        return self._left < 0

    def before_writing(self) -> None:
        pass


def job_of(embeddings: Path, prior: Path, settings: TrainSettings, limit: int | None = None) -> TrainJob:
    dataset, store = EmbeddingDataset(str(embeddings), READ), Store(str(prior))
    return make_job(dataset, store, settings, ComputeSettings(), None, limit)


def run_rank(rank: int, size: int, meeting: str, job: TrainJob, stop_after: int | None, answers: str) -> None:
    """One rank in a process of its own."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    rows: list[list[int]] = []
    backward = Learner.backward

    def noting(self: Learner, step: int, batch: Any, *others: Any) -> Any:
        rows.append(batch.rows.tolist())
        return backward(self, step, batch, *others)

    Learner.backward = noting  # type: ignore[method-assign]
    try:
        outcome = run_loop(job, job.open_embeddings(), Seen(stop_after if rank == size - 1 else None))
        found: dict[str, Any] = {"step": outcome.step, "stopped": outcome.stopped, "rows": rows}
    except PriorkitError as error:
        found = {"error": str(error)}
    Path(f"{answers}{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def on_ranks(job: TrainJob, size: int, folder: Path, stop_after: int | None = None) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    meeting = folder / f"meeting{len(list(folder.iterdir()))}"
    arguments = (size, str(meeting), job, stop_after, f"{folder}/answer")
    torch.multiprocessing.start_processes(run_rank, arguments, nprocs=size, start_method="fork")
    return [json.loads((folder / f"answer{rank}.json").read_text()) for rank in range(size)]


def log_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_losses(one: Path, other: Path, steps: int) -> None:
    first, second = log_of(one), log_of(other)
    assert [line["step"] for line in first] == [line["step"] for line in second]
    assert sum("loss" in line for line in first) == steps
    for name, tolerance in (("loss", 1e-5), ("grad_norm", 1e-4), ("validation_loss", 1e-5)):
        values = [[line[name] for line in log if name in line] for log in (first, second)]
        np.testing.assert_allclose(*values, rtol=tolerance)


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """487 rows, a prime number."""
    return write_embeddings(tmp_path_factory.mktemp("synthetic") / "embeddings", rows=487, token_states=True)


@pytest.fixture(scope="module")
def alone(embeddings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred steps in one process."""
    folder = tmp_path_factory.mktemp("alone")
    run_loop(job := job_of(embeddings, folder, HUNDRED), job.open_embeddings(), Seen())
    return folder


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_share_every_batch_and_give_the_losses_of_one_process(
    embeddings: Path, alone: Path, tmp_path: Path, size: int
) -> None:
    job = job_of(embeddings, tmp_path / "prior", HUNDRED)
    answers = on_ranks(job, size, tmp_path / "ranks")
    assert_same_losses(alone, tmp_path / "prior", 100)
    rows = [answer["rows"] for answer in answers]
    assert {len(of_rank) for of_rank in rows} == {100}
    trained = EmbeddingDataset(str(embeddings), READ).rows("train").tolist()
    epoch = -(-len(trained) // HUNDRED.batch_size)
    seen = sorted(row for of_rank in rows for step in of_rank[:epoch] for row in step)
    assert seen == trained
    sizes = [[len(step) for step in of_rank] for of_rank in rows]
    assert all(max(step) - min(step) <= 1 for step in zip(*sizes, strict=True))


def test_ranks_give_the_losses_of_one_process_for_raw_embeddings(tmp_path: Path) -> None:
    embeddings = write_embeddings(tmp_path / "embeddings", rows=487, token_states=True, raw=True)
    settings = changed(SMALL_RAW, steps=60, log_every=1, batch_size=61, validate_draws=2, noise_draws=2, accumulate=2)
    run_loop(job := job_of(embeddings, tmp_path / "alone", settings), job.open_embeddings(), Seen())
    on_ranks(job_of(embeddings, tmp_path / "prior", settings), 2, tmp_path / "ranks")
    assert_same_losses(tmp_path / "alone", tmp_path / "prior", 60)


def test_a_rank_without_rows_takes_part(embeddings: Path, tmp_path: Path) -> None:
    """The last batch of an epoch is of one row, and the others of two, for three ranks."""
    settings = changed(HUNDRED, steps=12, batch_size=2)
    job = job_of(embeddings, tmp_path / "alone", settings)
    run_loop(job, job.open_embeddings(), Seen())
    answers = on_ranks(job_of(embeddings, tmp_path / "prior", settings), 3, tmp_path / "ranks")
    assert_same_losses(tmp_path / "alone", tmp_path / "prior", 12)
    assert any(step == [] for answer in answers for step in answer["rows"])


def test_checkpoints_go_from_one_rank_to_two_and_back(embeddings: Path, alone: Path, tmp_path: Path) -> None:
    prior = tmp_path / "prior"
    run_loop(job := job_of(embeddings, prior, HUNDRED, limit=30), job.open_embeddings(), Seen())
    on_ranks(job_of(embeddings, prior, HUNDRED, limit=63), 2, tmp_path / "ranks")
    state = load_state(Store(str(prior)), job.fingerprint)
    assert state is not None
    assert state.step == 63
    run_loop(job := job_of(embeddings, prior, HUNDRED), job.open_embeddings(), Seen())
    assert_same_losses(alone, prior, 100)


def test_parts_of_a_step_give_its_loss(embeddings: Path, alone: Path, tmp_path: Path) -> None:
    settings = changed(HUNDRED, accumulate=4)
    run_loop(job := job_of(embeddings, tmp_path, settings), job.open_embeddings(), Seen())
    assert_same_losses(alone, tmp_path, 100)


def test_what_one_rank_is_asked_stops_all_with_a_checkpoint(embeddings: Path, alone: Path, tmp_path: Path) -> None:
    prior = tmp_path / "prior"
    answers = on_ranks(job_of(embeddings, prior, HUNDRED), 2, tmp_path / "ranks", stop_after=17)
    assert [(answer["step"], answer["stopped"]) for answer in answers] == [(17, True)] * 2
    on_ranks(job_of(embeddings, prior, HUNDRED), 2, tmp_path / "ranks")
    assert_same_losses(alone, prior, 100)


@pytest.mark.parametrize("token_states", [False, True])
def test_dropout_differs_from_rank_to_rank_and_goes_on_exactly(
    embeddings: Path, tmp_path: Path, token_states: bool
) -> None:
    settings = changed(
        HUNDRED, steps=20, network__attn_dropout=0.1, network__ff_dropout=0.1,
        network__max_text_len=3 if token_states else 0,
    )  # fmt: skip
    for name, limits in (("whole", [None]), ("parts", [7, None])):
        for limit in limits:
            on_ranks(job_of(embeddings, tmp_path / name, settings, limit), 2, tmp_path / "ranks")
    for file in ("metrics.jsonl", "model.safetensors", "best.safetensors", "state/step_000000020.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes(), file
    run_loop(job := job_of(embeddings, tmp_path / "one", settings), job.open_embeddings(), Seen())
    assert log_of(tmp_path / "one")[-2]["loss"] != log_of(tmp_path / "whole")[-2]["loss"]


def test_a_loss_that_is_not_finite_ends_all_ranks_alike(embeddings: Path, tmp_path: Path) -> None:
    settings = changed(HUNDRED, optimiser__learning_rate=1e30, optimiser__warmup_steps=0)
    answers = on_ranks(job_of(embeddings, tmp_path / "prior", settings), 2, tmp_path / "ranks")
    assert answers[0] == answers[1]
    assert "is not finite at step 1" in answers[0]["error"]
    assert "keys 000000" in answers[0]["error"]


def test_draws_in_validation_are_the_same_on_any_number_of_ranks(embeddings: Path, tmp_path: Path) -> None:
    settings = changed(HUNDRED, steps=4, validate_every=2, validate_draws=3, validate_steps=4)
    run_loop(job := job_of(embeddings, tmp_path / "alone", settings), job.open_embeddings(), Seen())
    on_ranks(job_of(embeddings, tmp_path / "prior", settings), 2, tmp_path / "ranks")
    for one, other in zip(log_of(tmp_path / "alone"), log_of(tmp_path / "prior"), strict=True):
        for name in ("validation_loss", "validation_energy_score", "validation_cosine"):
            assert (name in one) == ("validation_loss" in one)
            if name in one:
                assert one[name] == pytest.approx(other[name], rel=1e-5)
