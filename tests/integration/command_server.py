"""Run `priorkit` commands in processes forked from one that has already imported the heavy libraries.

A command in a fresh interpreter spends most of its time importing torch and open_clip. A forked process skips the
imports but otherwise runs like the installed command: it has its own arguments, environment, working directory, output
and exit code.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

START_SECONDS = 60
"""Seconds to wait until the server listens."""


class Command:
    """A command that runs, with the part of `subprocess.Popen`'s interface that the tests use."""

    def __init__(self, connection: socket.socket, output: IO[bytes], errors: IO[bytes]) -> None:
        self._connection, self._files = connection, (output, errors)
        self._answers = connection.makefile("r")
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, or None if the command has not ended."""
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self._wait(1)
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for the end, close all files, and return standard output and standard error.

        Raises:
            TimeoutError: the command did not end in time.
        """
        self._wait(timeout)
        texts = []
        for file in self._files:
            file.seek(0)
            texts.append(file.read().decode())
            file.close()
        self._answers.close()
        self._connection.close()
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _wait(self, timeout: float) -> None:
        if self.returncode is None:
            self._connection.settimeout(timeout)
            self.returncode = int(self._answers.readline())


class CommandServer:
    """The process that commands are forked from."""

    def __init__(self, address: Path) -> None:
        self._address = str(address)

    def start(self, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> Command:
        """Start a command whose standard input is empty. `Command.communicate` closes what is opened here."""
        request = json.dumps([list(arguments), str(cwd), dict(environment)]).encode()
        output, errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._address)
        socket.send_fds(connection, [len(request).to_bytes(8, "big")], [output.fileno(), errors.fileno()])
        connection.sendall(request)
        return Command(connection, output, errors)

    def run(
        self, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        command = self.start(arguments, cwd, environment)
        try:
            output, errors = command.communicate(timeout=240)
        finally:
            command.kill()  # one that did not end must not outlive the test
        assert command.returncode is not None
        return subprocess.CompletedProcess(["priorkit", *arguments], command.returncode, output, errors)


@contextlib.contextmanager
def serving_commands(folder: Path, environment: Mapping[str, str]) -> Iterator[CommandServer]:
    """Start a server whose socket is in the given folder, and stop it afterwards."""
    address = folder / "commands"
    with subprocess.Popen([sys.executable, __file__, address], env=dict(environment)) as process:
        try:
            end = time.monotonic() + START_SECONDS
            while not address.exists():
                assert process.poll() is None, "the command server ended"
                assert time.monotonic() < end, "the command server does not answer"
                time.sleep(0.01)
            yield CommandServer(address)
        finally:
            process.kill()


def _serve(address: str) -> None:
    """Fork one supervisor for each connection. A supervisor runs the command and sends its process id and exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel discards supervisors that have ended
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen()
    os.rename(f"{address}.new", address)
    while True:
        connection, _ = listener.accept()
        assert _threads() <= {"python", "jemalloc_bg_thd"}, f"threads do not survive a fork: {_threads()}"
        if os.fork() == 0:
            listener.close()
            _supervise(connection)
            return
        connection.close()


def _threads() -> set[str]:
    """Return the names of this process's threads. pyarrow's jemalloc has one and prepares it for a fork."""
    return {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}


def _supervise(connection: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, files, _, _ = socket.recv_fds(connection, 8, 2)
    request = b""
    while len(request) < int.from_bytes(size, "big"):
        request += connection.recv(1 << 16)
    process = os.fork()
    if process == 0:
        connection.close()
        _run(json.loads(request), files)
        return
    connection.sendall(f"{process}\n".encode())
    _, status = os.waitpid(process, 0)
    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _run(request: tuple[list[str], str, dict[str, str]], files: list[int]) -> None:
    """Become the command."""
    arguments, cwd, environment = request
    empty = os.open(os.devnull, os.O_RDONLY)
    for source, target in zip((empty, *files), range(3), strict=True):
        os.dup2(source, target)
        os.close(source)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["priorkit", *arguments]
    from priorkit.__main__ import main

    try:
        main()
    except SystemExit as end:
        atexit._run_exitfuncs()  # of what the rest of an interpreter's end does, nothing but its second is noticed
        os._exit(end.code if isinstance(end.code, int) else 0)


def _import_libraries() -> None:
    """Import what commands import, without starting a thread."""
    import open_clip  # noqa: F401
    import torch  # noqa: F401

    import priorkit.cli
    import priorkit.pipeline.download.stage
    import priorkit.pipeline.embed.stage
    import priorkit.prior.evaluate.stage
    import priorkit.prior.train.stage  # noqa: F401


if __name__ == "__main__":
    import priorkit.pipeline  # noqa: F401  # before torch, so that its threads do not spin

    _import_libraries()
    _serve(sys.argv[1])
