"""CPU cores that this process may use."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Return the number of CPU cores that this process may use: fewer than the machine has under `taskset` or Slurm."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
