"""Run img2dataset in processes forked from one that has already imported it.

img2dataset starts two processes for each download. In a fresh interpreter, all three processes would import it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import IO, Any

_PROGRAM = """
import json, multiprocessing, os, sys, traceback

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # the reports that img2dataset prints
get_context = multiprocessing.get_context
multiprocessing.get_context = lambda method=None: get_context("fork")  # img2dataset asks for "spawn"
multiprocessing.context.SpawnProcess = multiprocessing.context.ForkProcess
from img2dataset import download

for line in sys.stdin:
    process = os.fork()
    if process == 0:
        code = 1
        try:
            download(**json.loads(line))
            code = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), file=answers, flush=True)
"""


class Img2dataset:
    """The process that img2dataset's downloads are forked from."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self._process, self._errors = process, errors

    def download(self, **options: Any) -> None:
        """Run `img2dataset.download` with these options.

        Raises:
            AssertionError: it failed. The message has what it printed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._errors.seek(0)
        self._errors.truncate()
        self._process.stdin.write(json.dumps(options) + "\n")
        self._process.stdin.flush()
        code = self._process.stdout.readline()
        self._errors.seek(0)
        assert code == "0\n", self._errors.read()


@contextlib.contextmanager
def serving_img2dataset() -> Iterator[Img2dataset]:
    """Start the process, and end it afterwards."""
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}  # its import asks the network for a newer version
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            start_new_session=True,
        ) as process,
    ):  # fmt: skip
        try:
            yield Img2dataset(process, errors)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # the server, and what a test that was interrupted has left
