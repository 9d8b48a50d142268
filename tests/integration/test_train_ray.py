"""Training on Ray: the losses of one process while workers and nodes are killed; errors and stops as themselves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from priorkit.pipeline.compute.settings import ComputeSettings
from priorkit.pipeline.errors import Interrupted, PriorkitError
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.prior.interchange.load import load_prior
from priorkit.prior.train import on_ray as distributed
from priorkit.prior.train.stage import train

from .conftest import PRIORKIT, environment, wait_for
from .ray_nodes import cluster
from .synthetic import SMALL_TRAIN, changed, write_embeddings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:`use_[a-z0-9_]+` is deprecated:DeprecationWarning"
    ),  # settings of Ray Data, which Ray Train imports
]

TWO_WORKERS = ComputeSettings(backend="ray", workers=2)
HUNDRED = changed(SMALL_TRAIN, steps=100, log_every=1, checkpoint_every=1000, batch_size=61)
HEAVY = changed(
    HUNDRED, network__width=128, network__depth=3, batch_size=100, checkpoint_every=7, optimiser__learning_rate=1e-4
)
"""Some seconds, so that there is time to kill; at a rate at which rounding does not grow."""


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embeddings(tmp_path_factory.mktemp("synthetic") / "embeddings", rows=487)


@pytest.fixture(scope="module")
def expected(embeddings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of `HEAVY`."""
    folder = tmp_path_factory.mktemp("expected")
    train(str(embeddings), str(folder), HEAVY)
    return folder


def log_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_losses(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    first, second = log_of(one), log_of(other)
    assert [line["step"] for line in first] == [line["step"] for line in second]
    for name in ("loss", "validation_loss"):
        values = [[line[name] for line in log if name in line] for log in (first, second)]
        np.testing.assert_allclose(*values, rtol=tolerance)


def train_workers(nodes: list[Any]) -> dict[int, Any]:
    """Process ids of Ray Train's workers on some nodes, each with its node."""
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in nodes if "raylet" in node.all_processes}
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            title = (path / "cmdline").read_bytes()
        except (OSError, IndexError):  # it has ended
            continue
        if parent in raylets and b"RayTrainWorker" in title:
            found[int(path.name)] = raylets[parent]
    return found


class AtSteps:
    """A progress callback that does something once each of some steps is reached."""

    def __init__(self, work: dict[int, Callable[[], None]]) -> None:
        self.left = dict(work)
        self.seen: list[int] = []

    def __call__(self, done: int, total: int, note: str) -> None:
        self.seen.append(done)
        for step in [step for step in self.left if done >= step]:
            self.left.pop(step)()


def test_two_workers_give_the_losses_of_one_process(embeddings: Path, tmp_path: Path) -> None:
    """And checkpoints go from one to the other."""
    train(str(embeddings), str(tmp_path / "alone"), HUNDRED)
    with cluster(2):
        result = train(str(embeddings), str(tmp_path / "two"), HUNDRED, compute=TWO_WORKERS)
        assert (result.units, result.done_now) == (100, 100)
        assert_same_losses(tmp_path / "alone", tmp_path / "two")
        assert train(str(embeddings), str(tmp_path / "two"), HUNDRED, compute=TWO_WORKERS).done_now == 0
        mixed = tmp_path / "mixed"
        train(str(embeddings), str(mixed), HUNDRED, limit=31)
        assert train(str(embeddings), str(mixed), HUNDRED, compute=TWO_WORKERS, limit=64).done_now == 33
        train(str(embeddings), str(mixed), HUNDRED)
        assert_same_losses(tmp_path / "alone", mixed)
    assert load_prior(str(tmp_path / "two")).config == load_prior(str(tmp_path / "alone")).config


def test_a_worker_that_is_killed_is_replaced(embeddings: Path, expected: Path, tmp_path: Path) -> None:
    with cluster(2) as (_, nodes):
        killed: list[int] = []

        def kill() -> None:
            workers = train_workers(nodes)
            assert len(workers) == 2
            killed.append(max(workers))
            os.kill(killed[-1], signal.SIGKILL)

        progress = AtSteps({20: kill, 60: kill})
        train(str(embeddings), str(tmp_path), HEAVY, compute=TWO_WORKERS, progress=progress)
    assert len(set(killed)) == 2
    assert_same_losses(expected, tmp_path)


@pytest.mark.parametrize("spare", [1, 0])
def test_a_node_that_is_killed_is_made_do_without(embeddings: Path, expected: Path, tmp_path: Path, spare: int) -> None:
    """With a spare node there are two workers again, else one does the work of both."""
    with cluster(0, *[1] * (2 + spare)) as (made, nodes):
        after: list[int] = []

        def kill() -> None:
            made.remove_node(next(iter(train_workers(nodes).values())), allow_graceful=False)

        def count() -> None:
            left = [node for node in nodes if node in made.list_all_nodes()]
            after.append(len(train_workers(left)))

        progress = AtSteps({20: kill})
        progress.left[60] = count
        train(str(embeddings), str(tmp_path), HEAVY, compute=TWO_WORKERS, progress=progress)
    assert after == [1] or after == [1 + spare]  # Ray Train may see the spare node a minute later
    assert_same_losses(expected, tmp_path)


def test_too_few_nodes_for_the_least_are_an_error_and_not_a_wait_for_ever(
    embeddings: Path, expected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "_PATIENCE_SECONDS", 25.0)
    both = ComputeSettings(backend="ray", workers=2, min_workers=2)
    with cluster(0, 1, 1) as (made, nodes):

        def kill() -> None:
            made.remove_node(next(iter(train_workers(nodes).values())), allow_graceful=False)

        with pytest.raises(
            PriorkitError, match=r"after step \d+, too few nodes .*min_workers=2, .* room for 1 workers"
        ):
            train(str(embeddings), str(tmp_path), HEAVY, compute=both, progress=AtSteps({20: kill}))
    train(str(embeddings), str(tmp_path), HEAVY)
    assert_same_losses(expected, tmp_path)


def test_what_a_worker_raises_is_raised_as_itself(tmp_path: Path) -> None:
    def damage(image: np.ndarray) -> None:
        image[300] = np.nan

    unsound = write_embeddings(tmp_path / "embeddings", rows=487, damage=damage)
    read = ReadSettings(validation_fraction=0, test_fraction=0)
    with cluster(2):
        with pytest.raises(PriorkitError, match=r"rows 300, keys 000000300: embeddings are not unit vectors"):
            train(str(unsound), str(tmp_path / "prior"), HUNDRED, read, compute=TWO_WORKERS)
        wait_for(lambda: ray.available_resources().get("CPU") == 2)  # what it had held is free again


def test_a_stop_ends_all_workers_with_a_checkpoint(embeddings: Path, expected: Path, tmp_path: Path) -> None:
    reached: list[int] = []
    with cluster(2):
        with pytest.raises(Interrupted, match=r"stopped after step \d+ of 100; the same command resumes from there"):
            train(
                str(embeddings), str(tmp_path), HEAVY, compute=TWO_WORKERS,
                progress=lambda done, total, note: reached.append(done), should_stop=lambda: reached[-1:] > [20],
            )  # fmt: skip
    step = max(int(path.stem.rpartition("_")[2]) for path in (tmp_path / "state").iterdir())
    assert 20 < step < 100
    assert train(str(embeddings), str(tmp_path), HEAVY).done_now == 100 - step
    assert_same_losses(expected, tmp_path)


def test_a_cluster_without_room_is_refused_at_once(embeddings: Path, tmp_path: Path) -> None:
    with cluster(2):
        for compute, named in (
            (ComputeSettings(backend="ray", workers=3, min_workers=3), "min_workers=3, but .* room for 2 workers"),
            (ComputeSettings(backend="ray", workers=2, cpus_per_worker=9), "cpus_per_worker=9, but .* has 2 CPU"),
        ):
            with pytest.raises(PriorkitError, match=named):
                train(str(embeddings), str(tmp_path), HUNDRED, compute=compute)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_starts_its_own_ray_and_stops_when_asked(
    embeddings: Path, expected: Path, tmp_path: Path, number: signal.Signals
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"train": HEAVY.model_dump(mode="json")}))
    command = [PRIORKIT, "train", str(recipe), "--embeddings", str(embeddings), "--prior", str(tmp_path / "prior")]
    process = subprocess.Popen(
        [*command, "--workers", "2"], cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: any((tmp_path / "prior").glob("state/step*")) or process.poll() is not None)
    process.send_signal(number)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 130, error
    assert "stopped after step" in error
    assert "Traceback" not in error
    subprocess.run(command, cwd=tmp_path, env=environment(), check=True, capture_output=True, timeout=600)
    assert_same_losses(expected, tmp_path / "prior")
    assert not ray.is_initialized()
