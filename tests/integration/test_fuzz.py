"""Damaged inputs of every kind are read or refused by name: `tests/fuzz/run.py`, four seconds for each parser."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[1] / "fuzz" / "run.py"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_damaged_inputs_give_no_traceback_and_no_hang() -> None:
    done = subprocess.run([sys.executable, str(RUN), "--seconds", "28"], capture_output=True, text=True)
    print(done.stdout)  # the seed, and how to have a finding again
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("seed ")
