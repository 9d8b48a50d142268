"""Devices and GPUs for settings, in this process and on Ray workers."""

from __future__ import annotations

import pytest
import torch

from priorkit.pipeline.compute import device as module
from priorkit.pipeline.compute.cluster import Gpus
from priorkit.pipeline.compute.cores import available_cores
from priorkit.pipeline.compute.device import choose_device, describe_device, require_device, resolve, with_gpus
from priorkit.pipeline.compute.settings import ComputeSettings, DeviceSettings
from priorkit.pipeline.errors import PriorkitError, SettingsError

RAY = ComputeSettings(backend="ray", workers=2)
AUTO, CPU, CUDA = DeviceSettings(), DeviceSettings(device="cpu"), DeviceSettings(device="cuda")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[Gpus]:
    """GPUs of the simulated cluster."""
    found: list[Gpus] = []
    monkeypatch.setattr(module, "cluster_gpus", lambda compute: found[-1])
    return found


@pytest.mark.parametrize(
    ("cluster", "wanted", "explicit", "device", "each"),
    [
        (Gpus(8, "NVIDIA H200"), AUTO, None, "cuda", 1.0),
        (Gpus(8, "NVIDIA H200"), CUDA, None, "cuda", 1.0),
        (Gpus(8, "NVIDIA H200"), CPU, None, "cpu", 0.0),
        (Gpus(8, "NVIDIA H200"), AUTO, 0.0, "cpu", 0.0),
        (Gpus(8, "NVIDIA H200"), AUTO, 0.5, "cuda", 0.5),
        (Gpus(8, None), AUTO, None, "cpu", 0.0),
        (Gpus(0, None), AUTO, None, "cpu", 0.0),
    ],
)
def test_a_worker_has_a_gpu_if_it_can_use_one(
    gpus: list[Gpus], cluster: Gpus, wanted: DeviceSettings, explicit: float | None, device: str, each: float
) -> None:
    gpus.append(cluster)
    compute = RAY.model_copy(update={"gpus_per_worker": explicit})
    assert resolve(wanted, "train", compute).device == device
    assert with_gpus(compute, wanted).gpus_per_worker == each


@pytest.mark.parametrize(
    ("cluster", "explicit", "said"),
    [
        (Gpus(0, None), None, r"train\.device=cuda, but the Ray cluster has no GPU"),
        (Gpus(2, None), None, r"train\.device=cuda, but torch can use none of the Ray cluster.s 2 GPUs"),
        (Gpus(2, "A100"), 0.0, r"gpus_per_worker=0 gives workers none"),
    ],
)
def test_a_gpu_that_workers_cannot_use_is_refused(
    gpus: list[Gpus], cluster: Gpus, explicit: float | None, said: str
) -> None:
    gpus.append(cluster)
    with pytest.raises(SettingsError, match=said):
        resolve(CUDA, "train", RAY.model_copy(update={"gpus_per_worker": explicit}))


def test_a_stage_on_the_cpu_asks_no_cluster() -> None:
    elsewhere = ComputeSettings(backend="ray", address="127.0.0.1:9")
    assert resolve(CPU, "embed", elsewhere) == DeviceSettings(device="cpu", threads=available_cores())
    assert with_gpus(elsewhere, CPU).gpus_per_worker == 0


def test_the_summary_names_the_device(gpus: list[Gpus]) -> None:
    gpus.append(Gpus(8, "NVIDIA H200"))
    assert describe_device(AUTO, DeviceSettings(device="cuda", threads=2), RAY) == "cuda (NVIDIA H200)"
    explicit = RAY.model_copy(update={"gpus_per_worker": 1.0})
    gpus.clear()  # so that nothing is asked
    assert describe_device(AUTO, DeviceSettings(device="cuda", threads=2), explicit) == "cuda"
    assert describe_device(AUTO, DeviceSettings(device="cpu", threads=2), ComputeSettings()) == "cpu, 2 threads"
    assert describe_device(CPU, DeviceSettings(device="cpu", threads=1), RAY) == "cpu, 1 thread"
    gpus.append(Gpus(3, None))
    assert (
        describe_device(AUTO, DeviceSettings(device="cpu", threads=1), RAY)
        == "cpu, 1 thread; torch can use none of the Ray cluster's 3 GPUs"
    )


@pytest.mark.parametrize(("has_gpu", "automatic"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_the_gpu_if_torch_can_use_one(monkeypatch: pytest.MonkeyPatch, has_gpu: bool, automatic: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert choose_device("auto", "train.device") == automatic
    assert choose_device("cpu", "train.device") == "cpu"


def test_a_gpu_is_chosen_only_where_torch_can_use_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("cuda", "train.device") == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match=r"^train\.device=cuda, but torch sees no GPU here; use cpu or auto$"):
        choose_device("cuda", "train.device")
    with pytest.raises(SettingsError, match=r"^train\.device=tpu: known are auto, cpu and cuda$"):
        choose_device("tpu", "train.device")


def test_a_worker_without_the_chosen_gpu_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    require_device("cpu")
    with pytest.raises(PriorkitError, match=r"sees no GPU on .*; install torch for its GPUs there"):
        require_device("cuda")
