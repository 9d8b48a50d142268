"""Run `priorkit` commands in processes forked from one that has already imported the heavy libraries.

A command in a fresh interpreter spends most of its time importing torch and open_clip. A forked process skips the
imports but otherwise runs like the installed command: it has its own arguments, environment, working directory, output
and exit code. `fork_server`, `fork` and `serve` also serve other kinds of processes; see `decoder_server.py`.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_START_SECONDS = 600
"""Seconds to wait until the server listens or a command is forked, on a machine that is busy with other work."""
_NUMBER = struct.Struct("=q")
"""Format of the numbers that the processes exchange."""
_PR_SET_CHILD_SUBREAPER = 36
"""Option of Linux's prctl."""


class Command:
    """A command that runs, with the part of `subprocess.Popen`'s interface that the tests use."""

    def __init__(self, connection: socket.socket, *files: IO[bytes]) -> None:
        self._connection, self._files = connection, files
        self.pid = self._answer(_START_SECONDS)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, or None if the command has not ended."""
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.returncode = self._answer(1)
        return self.returncode

    def wait(self) -> int:
        """Wait for the end of a command whose output is not captured, and return its exit code."""
        if self.returncode is None:
            self.returncode = self._answer(_START_SECONDS)
        self._connection.close()
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for the end of the command and of all processes that it started; return its output and its errors.

        Raises:
            AssertionError: they did not end in time. The command has been killed. The message has the output.
        """
        is_late = False
        try:
            if self.returncode is None:
                self.returncode = self._answer(timeout)
            assert self._answer(timeout) == 0
        except TimeoutError:
            is_late = True
            self.kill()
        texts = []
        for file in self._files:
            file.seek(0)
            texts.append(file.read().decode())
            file.close()
        self._connection.close()
        assert not is_late, f"after {timeout:g} s the command, or what it started, still ran: {texts}"
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        if self.returncode is None and self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and the server is about to say so
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _answer(self, timeout: float) -> int:
        """Receive one number, and no byte more, so that `poll` can tell whether another has arrived."""
        self._connection.settimeout(timeout)
        data = self._connection.recv(_NUMBER.size, socket.MSG_WAITALL)
        assert data, "the command server ended"
        return int(_NUMBER.unpack(data)[0])


class CommandServer:
    """The process that commands are forked from."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._started: list[Command] = []

    def start(self, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> Command:
        """Start a command whose standard input is empty. `Command.communicate` closes what is opened here."""
        output, errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        request = [list(arguments), str(cwd), dict(environment)]
        connection = fork(self._address, request, (output.fileno(), errors.fileno()))
        self._started.append(Command(connection, output, errors))
        return self._started[-1]

    def run(
        self, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        command = self.start(arguments, cwd, environment)
        output, errors = command.communicate(timeout=600)
        assert command.returncode is not None
        return subprocess.CompletedProcess(["priorkit", *arguments], command.returncode, output, errors)

    def kill_all(self) -> None:
        """Kill the commands that failed tests have left."""
        for command in self._started:
            if command.returncode is None:
                command.kill()


@contextlib.contextmanager
def serving_commands(folder: Path, environment: Mapping[str, str]) -> Iterator[CommandServer]:
    """Start a server whose socket is in the given folder, and stop it afterwards."""
    with fork_server(__file__, folder, environment) as address:
        server = CommandServer(address)
        yield server
        server.kill_all()


@contextlib.contextmanager
def fork_server(script: str, folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Start a script that calls `serve`, yield the address of its socket in the folder, and stop it afterwards."""
    address = folder / "commands"
    program = [sys.executable, script, address]
    with subprocess.Popen(program, stdin=subprocess.PIPE, env=dict(environment)) as process:
        try:
            end = time.monotonic() + _START_SECONDS
            while not address.exists():
                assert process.poll() is None, "the server ended"
                assert time.monotonic() < end, "the server does not answer"
                time.sleep(0.01)
            yield str(address)
        finally:
            process.kill()


def fork(address: str, request: Any, files: tuple[int, int]) -> socket.socket:
    """Let a server fork a process, and return the connection over which the server sends the process's numbers.

    Args:
        address: address that `fork_server` yields.
        request: value that the process receives, as JSON.
        files: descriptors of two open files that the process receives.
    """
    data = json.dumps(request).encode()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    socket.send_fds(connection, [_NUMBER.pack(len(data))], files)
    connection.sendall(data)
    return connection


def serve(address: str, run: Callable[[Any, list[int]], None]) -> None:
    """Fork one supervisor for each connection, until the tests' process closes this one's standard input.

    Args:
        address: path of the socket.
        run: function that a forked process calls with the request and the two descriptors.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel discards supervisors that have ended
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen()
    os.rename(f"{address}.new", address)
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        assert _other_threads() <= {"jemalloc_bg_thd"}, f"threads do not survive a fork: {_other_threads()}"
        if os.fork() == 0:
            listener.close()
            _supervise(connection, run)
            return
        connection.close()


def _other_threads() -> set[str]:
    """Return the names of all threads but the main one. pyarrow's jemalloc has a thread, and handles forks."""
    tasks = [path for path in Path("/proc/self/task").iterdir() if path.name != str(os.getpid())]
    return {(path / "comm").read_text().strip() for path in tasks}


def _supervise(connection: socket.socket, run: Callable[[Any, list[int]], None]) -> None:
    """Run the process, and send its process id, its exit code, and 0 once all that it started has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans of the process become children of this
    size, files, _, _ = socket.recv_fds(connection, _NUMBER.size, 2)
    request = b""
    while len(request) < _NUMBER.unpack(size)[0]:
        chunk = connection.recv(1 << 16)
        if not chunk:
            return  # the tests' process has ended
        request += chunk
    process = os.fork()
    if process == 0:
        connection.close()
        run(json.loads(request), files)
        return
    for file in files:
        os.close(file)
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(_NUMBER.pack(process))
        ended, status = os.wait()
        while ended != process:
            ended, status = os.wait()
        connection.sendall(_NUMBER.pack(os.waitstatus_to_exitcode(status)))
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()
        connection.sendall(_NUMBER.pack(0))


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
        # the end of an interpreter, without the second in which it frees torch's modules
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)


def _import_libraries() -> None:
    """Import what commands import, without starting a thread."""
    import open_clip  # noqa: F401
    import pandas  # noqa: F401  # pyarrow imports it when it converts an array
    import torch._dynamo  # noqa: F401  # the first optimiser of a process imports it, which takes two seconds
    import typer.rich_utils  # noqa: F401

    import priorkit.__main__
    import priorkit.cli
    import priorkit.pipeline.display.terminal
    import priorkit.pipeline.download.stage
    import priorkit.pipeline.embed.stage
    import priorkit.pipeline.inspect.folder
    import priorkit.prior.evaluate.stage
    import priorkit.prior.model.texts
    import priorkit.prior.train.stage
    import priorkit.recipes.chain
    import priorkit.recipes.status  # noqa: F401

    gc.collect()
    gc.freeze()  # a collection in a command would search these objects, and copy their pages


if __name__ == "__main__":
    import priorkit.pipeline  # noqa: F401  # before torch, so that its threads do not spin

    _import_libraries()
    os.fsync = lambda file: None  # each call waits milliseconds for the disk, and no test ends with a power failure
    serve(sys.argv[1], _run)
