"""Description of the cluster in a summary, and GPUs of a machine where Ray is started."""

from __future__ import annotations

import pytest
import torch

from priorkit.pipeline.compute import cluster, ray_start
from priorkit.pipeline.compute.cluster import Gpus, cluster_gpus, describe_cluster
from priorkit.pipeline.compute.ray_address import ClusterAddress
from priorkit.pipeline.compute.ray_start import Joined
from priorkit.pipeline.compute.settings import ComputeSettings

RAY = ComputeSettings(backend="ray", workers=4, gpus_per_worker=1)


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "JOINED", {})
    monkeypatch.setattr(cluster, "_is_joined", lambda: False)
    assert ray_start.JOINED is not cluster.JOINED


def test_work_in_this_process_has_no_cluster() -> None:
    assert describe_cluster(ComputeSettings()) == ""


def test_a_cluster_is_described_with_its_workers_and_room(monkeypatch: pytest.MonkeyPatch) -> None:
    assert describe_cluster(RAY) == "4 workers on this machine"  # nothing was left to do
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}]
    cluster.JOINED[None] = Joined(ClusterAddress("h:6379", "RAY_ADDRESS"), nodes)
    assert describe_cluster(RAY) == "4 workers (room for 2) at h:6379 (RAY_ADDRESS)"
    one = RAY.model_copy(update={"workers": 1})
    assert describe_cluster(one) == "1 worker at h:6379 (RAY_ADDRESS)"
    monkeypatch.setattr(cluster, "_is_joined", lambda: True)
    assert describe_cluster(one) == "1 worker on the cluster that this process has joined"


def test_the_gpus_of_this_machine_are_those_that_torch_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray is not started to count them."""
    compute = ComputeSettings(backend="ray", workers=2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cluster_gpus(compute) == Gpus(0, None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H200")
    assert cluster_gpus(compute) == Gpus(2, "NVIDIA H200")
