"""Start decoder processes by forking one that has already imported OpenCV and img2dataset, which takes a second."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

if __name__ == "__main__":
    from command_server import Command, fork, fork_server, serve
else:
    from .command_server import Command, fork, fork_server, serve


class DecoderServer:
    """The process that decoder processes are forked from. It is started when the first of them is.

    Args:
        folder: folder for the socket.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._address = ""
        self._lock = threading.Lock()
        self._exit_stack = contextlib.ExitStack()

    def popen(
        self, command: Sequence[str], *, stdin: int, stdout: int, stderr: IO[bytes], env: Mapping[str, str],
        start_new_session: bool,
    ) -> Command:  # fmt: skip
        """Do what `subprocess.Popen` does with the arguments that `decoders.py` passes."""
        assert (list(command[:2]), stdout, start_new_session) == ([sys.executable, "-c"], stdin, True)
        with self._lock:
            if not self._address:
                self._address = self._exit_stack.enter_context(fork_server(__file__, self._folder, env))
        return Command(fork(self._address, [list(command), dict(env)], (stdin, stderr.fileno())))

    def close(self) -> None:
        self._exit_stack.close()


def _run(request: tuple[list[str], dict[str, str]], files: list[int]) -> None:
    """Become the decoder process."""
    command, environment = request
    os.setsid()
    for source, target in ((files[0], 0), (files[0], 1), (files[1], 2)):
        os.dup2(source, target)
    for file in files:
        os.close(file)
    if _sent_settings()["max_pixels"] != DownloadSettings().max_pixels:
        os.execve(command[0], command, environment)  # OpenCV reads the limit when it is imported
    os.environ.clear()
    os.environ.update(environment)
    exec(command[2], {"__name__": "__main__"})


def _sent_settings() -> dict[str, Any]:
    """Return the settings that arrive on the standard input, and leave them there for the decoder."""
    needed, data = LENGTH.size, b""
    with socket.socket(fileno=os.dup(0)) as connection:
        while len(data) < needed:
            data = connection.recv(needed, socket.MSG_PEEK | socket.MSG_WAITALL)
            if not data:
                sys.exit("the parent ended")
            if len(data) == LENGTH.size:
                needed = LENGTH.size + LENGTH.unpack(data)[0]
    settings: dict[str, Any] = json.loads(data[LENGTH.size :])
    return settings


if __name__ == "__main__":
    from priorkit.pipeline.download.decoding import decoder_process  # noqa: F401
    from priorkit.pipeline.download.decoding.messages import LENGTH
    from priorkit.pipeline.download.settings import DownloadSettings

    os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(DownloadSettings().max_pixels)
    from priorkit.pipeline.download.decoding import resize  # noqa: F401

    serve(sys.argv[1], _run)
