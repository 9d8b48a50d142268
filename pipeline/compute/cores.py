"""CPU cores that this process may use."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Return the number of CPU cores that this process may use.

    Under `taskset` or Slurm, this number may be smaller than the number of cores in the machine.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
