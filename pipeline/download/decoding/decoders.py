"""Pool of decoder processes. If a process crashes or hangs, only its current image fails, and a new process is started.

Each process is a plain child process connected by a socket, rather than a `multiprocessing` process. Such a process
does not import `__main__` again, works inside Ray actors, and exits when its parent exits for any reason.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO

from ...compute.cores import available_cores
from ...compute.openmp import without_spinning
from ...errors import PriorkitError
from ..outcomes import ImageError, ResizedImage
from ..settings import DownloadSettings
from .boxes import Boxes
from .messages import LENGTH, READY, pack_request, unpack

_SENT_JOBS = 2
"""Maximum number of unanswered response bodies per decoder process: one being decoded and one waiting."""
_START_ATTEMPTS = 3
"""Number of attempts to start a process before the download fails."""
_SOCKET_BYTES = 1 << 20
"""Requested size in bytes of the send buffer at each end of the socket. Most response bodies fit into the buffer."""
_PROGRAM = "import sys; sys.path[:] = {path}; from {module} import main; main()"
"""Template of the Python code that a child process runs: like `python -m MODULE`, but with the parent's import path."""


@dataclass(eq=False)
class _Job:
    """Response body to decode, with the boxes to blur, and the future that receives the image or an exception."""

    body: bytes
    boxes: Boxes
    answer: asyncio.Future[ResizedImage]


class Decoders:
    """Pool of processes that decode, resize and encode images. Use it as an asynchronous context manager.

    The number of processes is `settings.decode_processes`; if that is 0, it is the number of available cores. A process
    that crashes or hangs is replaced.
    """

    def __init__(self, settings: DownloadSettings) -> None:
        self._settings = settings
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue()
        self._failure: PriorkitError | None = None
        self._workers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Decoders:
        number = self._settings.decode_processes or available_cores()
        self._workers = [asyncio.create_task(self._work(_Slot(self._settings, self._jobs))) for _ in range(number)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    async def decode(self, body: bytes, boxes: Boxes = ()) -> ResizedImage:
        """Decode, resize and encode the image in a response body.

        Args:
            body: response body.
            boxes: boxes to blur.

        Raises:
            ImageError: no image can be produced from the body. Its outcome is `decode` if the process crashed or hung.
            PriorkitError: no decoder process can be started.
        """
        if self._failure is not None:
            raise self._failure
        job = _Job(body, boxes, asyncio.get_running_loop().create_future())
        self._jobs.put_nowait(job)
        return await job.answer

    async def _work(self, slot: _Slot) -> None:
        """Run one slot of the pool until cancelled.

        If the slot cannot start a decoder process, `_Slot.run` raises a `PriorkitError`. All queued jobs, and the jobs
        that the slot has sent without receiving an answer, then fail with this error. Later calls of `decode` raise it
        too.
        """
        try:
            await slot.run()
        except PriorkitError as error:
            self._failure = error
            waiting = [*slot.sent, *(self._jobs.get_nowait() for _ in range(self._jobs.qsize()))]
            for job in waiting:
                if not job.answer.done():
                    job.answer.set_exception(error)


@dataclass(eq=False)
class _Slot:
    """Slot in the pool, running one decoder process at a time.

    When the process ends, the slot starts a new one. It also tracks the jobs that were sent to the process.
    """

    settings: DownloadSettings
    jobs: asyncio.Queue[_Job]
    sent: collections.deque[_Job] = field(default_factory=collections.deque)
    """Jobs sent to the process but not answered yet, oldest first. The first is being decoded; the second waits."""

    async def run(self) -> None:
        """Send jobs to a decoder process and deliver its answers, until cancelled.

        If the process ends, the job that it was decoding fails with an `ImageError`. A new process is then started
        and takes over the remaining jobs.

        Raises:
            PriorkitError: no decoder process can be started.
        """
        while True:
            process = await self._start()
            feeding = asyncio.create_task(self._feed(process))
            try:
                await self._collect(process)
            finally:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)
                cause = await process.end()
            if self.sent:
                self._answer(ImageError("decode", cause))

    async def _start(self) -> _Process:
        """Start a decoder process and return it, making at most `_START_ATTEMPTS` attempts.

        Raises:
            PriorkitError: the last attempt failed.
        """
        for _ in range(_START_ATTEMPTS - 1):
            with contextlib.suppress(PriorkitError):  # for example, the kernel killed the process for its memory use
                return await _Process.start(self.settings)
        return await _Process.start(self.settings)

    async def _feed(self, process: _Process) -> None:
        """Send queued jobs to the decoder process until cancelled.

        At most `_SENT_JOBS` jobs are unanswered at any time. Jobs that an earlier process left unanswered are sent
        first.
        """
        process.watch(bool(self.sent))
        for job in list(self.sent):
            await process.send(*pack_request(job.body, job.boxes))
        while True:
            while len(self.sent) >= _SENT_JOBS:
                await process.answered.wait()
                process.answered.clear()
            job = await self.jobs.get()
            if job.answer.cancelled():
                continue
            self.sent.append(job)
            if len(self.sent) == 1:
                process.watch(True)
            await process.send(*pack_request(job.body, job.boxes))

    async def _collect(self, process: _Process) -> None:
        """Receive answers from the decoder process, and pass each one to the oldest unanswered job.

        Return when the process has ended or has sent an invalid message.
        """
        while (answer := await process.receive()) is not None:
            self._answer(answer)
            process.watch(bool(self.sent))
            process.answered.set()

    def _answer(self, answer: ResizedImage | ImageError) -> None:
        """Remove the oldest job from `sent`, and set the result or the exception of its future.

        If the job has been cancelled, only remove it.

        Args:
            answer: resized image, or the exception to set on the future.
        """
        job = self.sent.popleft()
        if job.answer.cancelled():
            return
        if isinstance(answer, ImageError):
            job.answer.set_exception(answer)
        else:
            job.answer.set_result(answer)


class _Process:
    """Running decoder process.

    Args:
        child: handle of the process.
        reader: receiving end of the socket.
        writer: sending end of the socket.
        limit: maximum number of seconds for one image.
    """

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        limit: float,
    ) -> None:
        self._child, self._reader, self._writer, self._limit = child, reader, writer, limit
        self._timer: asyncio.TimerHandle | None = None
        self._hung = False
        self.answered = asyncio.Event()

    @classmethod
    async def start(cls, settings: DownloadSettings) -> _Process:
        """Start a process and wait until it is ready.

        Raises:
            PriorkitError: the process ended before it was ready. The message quotes the last line of its stderr.
        """
        ours, theirs = socket.socketpair()
        with tempfile.TemporaryFile() as errors:
            with theirs:
                for end in (ours, theirs):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
                child = _spawn(theirs, errors)
            try:
                reader, writer = await asyncio.open_connection(sock=ours)
            except BaseException:  # includes cancellation
                child.kill()
                child.wait()
                raise
            process = cls(child, reader, writer, settings.decode_timeout_seconds)
            try:
                with contextlib.suppress(ConnectionError):
                    await process.send(settings.model_dump_json().encode())
                    if await process._message() == READY:
                        return process
            except asyncio.CancelledError:
                await process.end()
                raise
            cause = await process.end()
            errors.seek(0)
            output = errors.read().decode(errors="replace").strip()
        last = output.splitlines()[-1] if output else "it printed no error"
        raise PriorkitError(f"no process to decode images can be started: {cause}; {last}")

    async def send(self, *parts: bytes) -> None:
        """Send a message, given in parts, and wait until the send buffer has room again."""
        self._writer.write(LENGTH.pack(sum(map(len, parts))))
        for part in parts:
            self._writer.write(part)
        await self._writer.drain()

    async def receive(self) -> ResizedImage | ImageError | None:
        """Receive and return the next answer, or None if the process has ended or its message is invalid."""
        message = await self._message()
        try:
            return None if message is None else unpack(message)
        except ValueError:
            return None  # a malicious image may have taken over the process

    async def _message(self) -> bytes | None:
        """Receive and return the next message, or None at the end of the stream."""
        try:
            (size,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
            return await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def watch(self, busy: bool) -> None:
        """Restart or stop the timer that kills the process if it takes too long for one image.

        Args:
            busy: True to restart the timer, because the process has an image to decode; False to stop it, because the
                process is idle.
        """
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._limit, self._kill_hung) if busy else None

    def _kill_hung(self) -> None:
        """Kill the process because it has exceeded the time limit."""
        self._hung = True
        self._child.kill()

    async def end(self) -> str:
        """Kill the process if it is still running, and return an error message that says why the process ended."""
        self.watch(False)
        self._child.kill()
        code = self._child.wait()
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
        if self._hung:
            return f"the decoder hung for {self._limit:g} s"
        if code < 0:
            return f"the decoder was ended by {signal.Signals(-code).name}"
        return f"the decoder ended with code {code}"


def _spawn(connection: socket.socket, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a decoder process and return its handle.

    Args:
        connection: socket that becomes the process's stdin and stdout.
        errors: file that becomes the process's stderr.
    """
    path = json.dumps([entry for entry in sys.path if isinstance(entry, str)])
    module = f"{__package__}.decoder_process"
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM.format(path=path, module=module)],
        stdin=connection.fileno(),
        stdout=connection.fileno(),
        stderr=errors,
        env={**os.environ, **without_spinning(os.environ), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,  # Ctrl-C in the terminal must reach only the parent, which then ends its children
    )
