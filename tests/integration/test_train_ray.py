"""Training on Ray: the losses of one process while workers and nodes are killed; errors and stops as themselves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from priorkit.pipeline.compute.settings import ComputeSettings
from priorkit.pipeline.errors import PriorkitError
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.prior.interchange.load import load_prior
from priorkit.prior.train import on_ray as distributed
from priorkit.prior.train.output import STATS_NAME
from priorkit.prior.train.stage import train

from .conftest import PRIORKIT, environment, stop, wait_for
from .ray_nodes import RayCluster, cluster
from .synthetic import SMALL_RAW, SMALL_TRAIN, changed, write_embeddings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:`use_[a-z0-9_]+` is deprecated:DeprecationWarning"
    ),  # settings of Ray Data, which Ray Train imports
]

NODES = (0, 2)
"""Size of the shared cluster: no CPU on the head and 1 on each of two nodes."""

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


def workers_of(folder: Path) -> int:
    """Number of workers that wrote the newest checkpoint."""
    return int(json.loads((folder / STATS_NAME).read_text())["workers"])


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
    """A progress callback that does one thing once a step is reached, the next once another step is, and so on.

    Args:
        work: what is done, with a step for each, in order. It gets the workers, and waits for workers that replace
            those of the previous time.
    """

    def __init__(self, nodes: RayCluster, work: list[tuple[int, Callable[[dict[int, Any]], None]]]) -> None:
        self._nodes, self.left = nodes, list(work)
        self._seen: set[int] = set()

    def __call__(self, done: int, total: int, note: str) -> None:
        if self.left and done >= self.left[0][0]:
            workers = train_workers(self._nodes.nodes)
            if workers and not self._seen & set(workers):
                self._seen = set(workers)
                self.left.pop(0)[1](workers)


def test_too_few_nodes_for_the_least_are_an_error_and_not_a_wait_for_ever(
    embeddings: Path, expected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster is not shared, since Ray reserves what this training wanted for 3 minutes.

    This test comes before those with `nodes`, since a process can only be in one cluster.
    """
    monkeypatch.setattr(distributed, "_PATIENCE_SECONDS", 4.0)
    both = ComputeSettings(backend="ray", workers=2, min_workers=2)
    with cluster(0, 2) as nodes:
        progress = AtSteps(nodes, [(10, lambda workers: nodes.kill(workers[min(workers)]))])
        with pytest.raises(
            PriorkitError, match=r"after step \d+, too few nodes .*min_workers=2, .* room for 1 workers"
        ):
            train(str(embeddings), str(tmp_path), HEAVY, compute=both, progress=progress)
    train(str(embeddings), str(tmp_path), HEAVY)
    assert_same_losses(expected, tmp_path)


def test_the_command_starts_its_own_ray_and_stops_all_workers_when_asked(
    embeddings: Path, expected: Path, tmp_path: Path
) -> None:
    """On Ctrl-C, which Ray Train would take for itself; `test_ray.py` has SIGTERM, which Ray would take."""
    recipe, prior = tmp_path / "recipe.yaml", tmp_path / "prior"
    recipe.write_text(json.dumps({"train": HEAVY.model_dump(mode="json")}))
    command = [PRIORKIT, "train", str(recipe), "--embeddings", str(embeddings), "--prior", str(prior)]
    process = subprocess.Popen(
        [*command, "--workers", "2"], cwd=tmp_path, env={**environment(), "RAY_memory_monitor_refresh_ms": "0"},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: any(prior.glob("state/step*")) or process.poll() is not None)
    error = stop(process, signal.SIGINT)
    assert re.search(r"stopped after step \d+ of 100; the same command resumes from there", error), error
    assert workers_of(prior) == 2
    step = max(int(path.stem.rpartition("_")[2]) for path in (prior / "state").iterdir())
    assert 7 <= step < 100
    assert train(str(embeddings), str(prior), HEAVY).done_now == 100 - step
    assert_same_losses(expected, prior)


def test_checkpoints_go_from_one_process_to_two_workers_and_back(
    nodes: RayCluster, embeddings: Path, tmp_path: Path
) -> None:
    alone, mixed = tmp_path / "alone", tmp_path / "mixed"
    train(str(embeddings), str(alone), HUNDRED)
    train(str(embeddings), str(mixed), HUNDRED, limit=31)
    assert train(str(embeddings), str(mixed), HUNDRED, compute=TWO_WORKERS, limit=64).done_now == 33
    assert workers_of(mixed) == 2
    train(str(embeddings), str(mixed), HUNDRED)
    assert_same_losses(alone, mixed)


def test_one_and_two_workers_train_a_prior_transformer_alike(nodes: RayCluster, tmp_path: Path) -> None:
    embeddings = write_embeddings(tmp_path / "embeddings", rows=487, token_states=True, raw=True)
    settings = changed(SMALL_RAW, steps=60, log_every=1, checkpoint_every=1000, batch_size=61)
    for workers in (1, 2):
        compute = ComputeSettings(backend="ray", workers=workers)
        train(str(embeddings), str(tmp_path / f"{workers}"), settings, compute=compute)
        assert workers_of(tmp_path / f"{workers}") == workers
    assert_same_losses(tmp_path / "1", tmp_path / "2")
    one, two = (load_prior(str(tmp_path / f"{workers}")) for workers in (1, 2))
    assert one.config == two.config
    assert one.empty is not None
    assert two.empty is not None


def test_what_a_worker_raises_is_raised_as_itself(nodes: RayCluster, tmp_path: Path) -> None:
    def damage(image: np.ndarray) -> None:
        image[300] = np.nan

    unsound = write_embeddings(tmp_path / "embeddings", rows=487, damage=damage)
    read = ReadSettings(validation_fraction=0, test_fraction=0)
    with pytest.raises(PriorkitError, match=r"rows 300, keys 000000300: embeddings are not unit vectors"):
        train(str(unsound), str(tmp_path / "prior"), HUNDRED, read, compute=TWO_WORKERS)
    nodes.wait_until_idle()


def test_a_cluster_without_room_is_refused_at_once(nodes: RayCluster, embeddings: Path, tmp_path: Path) -> None:
    for compute, named in (
        (ComputeSettings(backend="ray", workers=3, min_workers=3), "min_workers=3, but .* room for 2 workers"),
        (ComputeSettings(backend="ray", workers=2, cpus_per_worker=9), "cpus_per_worker=9, but .* has 1 CPU"),
    ):
        with pytest.raises(PriorkitError, match=named):
            train(str(embeddings), str(tmp_path), HUNDRED, compute=compute)


def test_workers_and_nodes_that_are_killed_change_no_loss(
    nodes: RayCluster, embeddings: Path, expected: Path, tmp_path: Path
) -> None:
    """With a spare node there are two workers again, else one does the work of both."""
    nodes.add_node()
    counts: list[int] = []

    def kill_worker(workers: dict[int, Any]) -> None:
        counts.append(len(workers))
        os.kill(max(workers), signal.SIGKILL)

    def kill_node(workers: dict[int, Any]) -> None:
        counts.append(workers_of(tmp_path))
        nodes.kill(workers[min(workers)])

    progress = AtSteps(nodes, [(10, kill_worker), (35, kill_node), (60, kill_node)])
    result = train(str(embeddings), str(tmp_path), HEAVY, compute=TWO_WORKERS, progress=progress)
    assert (result.units, result.done_now) == (100, 100)
    assert counts in ([2, 2, 2], [2, 2, 1])  # Ray Train may see the spare node a minute later
    assert len(nodes.nodes) == 2
    assert workers_of(tmp_path) == 1
    assert_same_losses(expected, tmp_path)
    assert load_prior(str(tmp_path)).config == load_prior(str(expected)).config
    assert train(str(embeddings), str(tmp_path), HEAVY, compute=TWO_WORKERS).done_now == 0
    actors = {actor["ActorClassName"] for actor in ray._private.state.actors().values()}
    assert "RayTrainWorker" in actors
    assert "PreemptionWatcher" not in actors
