"""Commands that fail end at once, with one message and no abort of the interpreter."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

PRIORKIT = str(Path(sys.executable).with_name("priorkit"))
_TIMES = 10


@pytest.mark.slow
def test_an_error_after_the_first_rows_of_a_csv_ends_the_command(tmp_path: Path) -> None:
    """It aborted, or hung, in about half of the runs: pyarrow's threads called the file as the interpreter ended."""
    rows = (f"http://127.0.0.1:9/{number}.jpg,caption number {number} with some words,3\n" for number in range(200_000))
    with gzip.open(tmp_path / "list.csv.gz", "wt", compresslevel=1) as file:
        file.write("url,caption,size\n" + "".join(rows))

    def run(_: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PRIORKIT, "download", "list.csv.gz", "--images", "none", "--url-column", "address"],
            cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600,
        )  # fmt: skip

    with ThreadPoolExecutor(2) as threads:
        for done in threads.map(run, range(_TIMES)):
            assert done.returncode == 1, done.stderr
            assert done.stderr.count("error: ") == len(done.stderr.splitlines()) == 1
            assert "no column 'address'; did you mean 'url'?" in done.stderr
