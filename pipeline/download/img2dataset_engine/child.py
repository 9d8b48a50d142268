"""Child process that runs img2dataset's downloader, as seen from its parent.

img2dataset prints tracebacks, redirects stdout and stderr for each image, waits without limit for slow servers, and
runs C code on untrusted images. In a process of its own, it cannot disturb the output of the command, and it can be
killed at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from ...errors import PriorkitError
from ...json_text import parse_json
from .request import Request

_PROGRAM = "import sys; sys.path[:] = {path}; from {module} import main; main()"
"""Template of the Python code that the process runs: like `python -m MODULE`, but with the parent's import path."""
_SHARDS = 5
"""Maximum number of shards that one process downloads. img2dataset also replaces its processes after 5 shards,
because their memory use grows."""
_END_SECONDS = 5.0
"""Seconds to wait for the exit code of a process that has closed its output."""

RowCallback = Callable[[str, str, str | None, int], None]
"""Callback for each finished row. It receives the key, the status, the error message (None for a success) and the size
of the response body in bytes."""


class Child:
    """Process that downloads shards one after another with img2dataset.

    The process is started by the first call of `run`, and ends when its parent ends for any reason.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._shards = 0

    def run(self, request: Request, on_row: RowCallback) -> None:
        """Download one shard, and return when its files are complete.

        Args:
            request: shard to download.
            on_row: callback for each finished row, in order of completion. If it raises an exception, the process is
                killed.

        Raises:
            OSError: a file could not be written, for example because the disk is full.
            PriorkitError: img2dataset cannot be imported, or it failed.
        """
        if self._shards == _SHARDS:
            self.close()
        try:
            process = self._process or self._start()
            self._shards += 1
            _send(process, request)
            while True:
                match _receive(process):
                    case ["row", str(key), str(status), str() | None as message, int(size)]:
                        on_row(key, status, message, size)
                    case ["done"]:
                        return
                    case ["failed", str(text), None]:
                        raise PriorkitError(f"download.engine=img2dataset: shard {request.name}: {text}")
                    case ["failed", str(text), int(number)]:
                        raise OSError(number, text)
                    case _:
                        raise PriorkitError(
                            f"download.engine=img2dataset: its process {_end(process)} in shard {request.name}; what "
                            "is committed is kept, the same command resumes. engine=native replaces decoders that crash"
                        )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Kill the process if it is running."""
        process, self._process, self._shards = self._process, None, 0
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _start(self) -> subprocess.Popen[bytes]:
        """Start a process, and return it once it has imported img2dataset.

        Raises:
            PriorkitError: the process ended before that. The message quotes the last line of its stderr.
        """
        path = json.dumps([entry for entry in sys.path if isinstance(entry, str)])
        with tempfile.TemporaryFile() as errors:
            self._process = process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM.format(path=path, module=f"{__package__}.process")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"},  # it looks for a newer release by default
                start_new_session=True,  # Ctrl-C in the terminal must reach only the parent, which then kills it
            )
            if _receive(process) == ["ready"]:
                return process
            ended = _end(process)
            errors.seek(0)
            output = errors.read().decode(errors="replace").strip()
        last = output.splitlines()[-1] if output else "it printed no error"
        raise PriorkitError(f"download.engine=img2dataset cannot be started: its process {ended}; {last}")


def _send(process: subprocess.Popen[bytes], request: Request) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # the missing answer shows that the process has ended
        process.stdin.write(request.to_line())
        process.stdin.flush()


def _receive(process: subprocess.Popen[bytes]) -> Any:
    """Receive and return the next message, or None if the process has ended or its message is invalid."""
    assert process.stdout is not None
    try:
        return parse_json(process.stdout.readline())
    except ValueError:
        return None


def _end(process: subprocess.Popen[bytes]) -> str:
    """Wait until the process has ended, and return a clause that says how it ended."""
    try:
        code = process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        return "sent an invalid message"
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
