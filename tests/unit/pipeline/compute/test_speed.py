"""The speed of a device: measured once where torch can use it, and assumed elsewhere."""

from __future__ import annotations

import pytest
import torch

from priorkit.pipeline.compute import speed
from priorkit.pipeline.compute.device import ASSUMED_FLOPS
from priorkit.pipeline.compute.speed import estimate_flops, measure_flops


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure small matrices for a moment."""
    monkeypatch.setattr(speed, "_SIZES", {"cpu": 32, "cuda": 32})
    monkeypatch.setattr(speed, "_SECONDS", 0.0)
    measure_flops.cache_clear()


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_cpu_is_measured_once_and_its_threads_are_restored(dtype: str) -> None:
    before = torch.get_num_threads()
    first = measure_flops("cpu", dtype, 1)
    assert first is not None
    assert first > 0
    assert measure_flops("cpu", dtype, 1) == first
    assert measure_flops.cache_info().misses == 1
    assert torch.get_num_threads() == before
    assert estimate_flops("cpu", dtype, 1) == pytest.approx(0.7 * first)


@pytest.mark.usefixtures("short")
def test_a_gpu_that_only_workers_have_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert measure_flops("cuda", "bfloat16", 2) is None
    assert estimate_flops("cuda", "bfloat16", 2) == ASSUMED_FLOPS["cuda"]
