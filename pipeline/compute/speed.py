"""Estimate of a device's speed, for the time estimates of `--dry-run`.

A short matrix product is timed on the device. A model reaches a part of this speed, since it also does other work.
"""

from __future__ import annotations

import functools
import time

from .device import ASSUMED_FLOPS

_SIZES = {"cpu": 1024, "cuda": 4096}
"""Width and height of the matrices. Products of this size reach the device's full speed."""
_SECONDS = 0.1
"""Minimum number of seconds of the measurement."""
_MODEL_SHARE = {"cpu": 0.7, "cuda": 0.35}
"""Speed of a transformer as a part of the speed of a large matrix product. See `docs/benchmarks`: on the CPU, it was
0.9 for a CLIP's towers and 0.3 to 0.8 for training steps."""


def estimate_flops(device: str, dtype: str, threads: int) -> float:
    """Return the estimated speed of a transformer on a device, in floating-point operations per second.

    If torch cannot use the device in this process, for example because only Ray workers have a GPU, return an assumed
    speed.

    Args:
        device: `cpu` or `cuda`.
        dtype: name of the torch dtype of the matrix products, such as `bfloat16`.
        threads: number of CPU threads.
    """
    measured = measure_flops(device, dtype, threads)
    return ASSUMED_FLOPS[device] if measured is None else measured * _MODEL_SHARE[device]


@functools.lru_cache(maxsize=8)
def measure_flops(device: str, dtype: str, threads: int) -> float | None:
    """Measure the speed of a large matrix product on a device, in floating-point operations per second.

    Return None if torch cannot use the device. The result is cached, so that one command measures once.
    """
    import torch  # imported here, since commands without a model do not need it

    if device == "cuda" and not torch.cuda.is_available():
        return None
    size, before = _SIZES[device], torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        matrix = torch.full((size, size), 0.5, dtype=getattr(torch, dtype), device=device)
        _wait(device, matrix @ matrix)  # the first product also loads libraries
        products, start = 0, time.perf_counter()
        while True:
            _wait(device, matrix @ matrix)
            products += 1
            seconds = time.perf_counter() - start
            if seconds >= _SECONDS:
                return float(products * 2 * size**3 / seconds)
    finally:
        torch.set_num_threads(before)


def _wait(device: str, result: object) -> None:
    """Wait until the device has computed the result. On the CPU, it is computed already."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
