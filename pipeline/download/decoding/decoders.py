"""Decoding, resizing and encoding in processes of their own, which may crash or hang: that costs one image each time.

A process is a plain child with a socket, not one of `multiprocessing`: it needs no `__main__` that can be imported
again, works in Ray's actors, and ends by itself when this process does, however that ends.
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
from ..outcomes import LENGTH, READY, ImageError, ResizedImage, unpack
from ..settings import DownloadSettings

_IN_HAND = 2
"""Bodies that a process has: one to work on, and one that is there already when it is done with that."""
_STARTS = 3
"""Processes that may fail to start, one after the other."""
_SOCKET_BYTES = 1 << 20
"""Asked of the system for either direction, so that most bodies are handed over at once."""
_PROGRAM = "import sys; sys.path[:] = {path}; from {module} import main; main()"
"""As `-m` of the decoding module would, but with the import path of this process, wherever that came from."""


@dataclass(eq=False)
class _Job:
    """A body and what is to become of it."""

    body: bytes
    answer: asyncio.Future[ResizedImage]


class Decoders:
    """A fixed number of decoding processes, which turn bodies into images. Use as an asynchronous context."""

    def __init__(self, settings: DownloadSettings) -> None:
        self._settings = settings
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue()
        self._failure: PriorkitError | None = None
        self._workers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Decoders:
        number = self._settings.decode_processes or available_cores()
        self._workers = [asyncio.create_task(self._work(_Place(self._settings, self._jobs))) for _ in range(number)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    async def decode(self, body: bytes) -> ResizedImage:
        """The image that is stored for the body of a response.

        Raises:
            ImageError: `not_image`, `too_many_pixels`, `filtered`, `encode`; or `decode`, also where the process
                crashed or hung.
            PriorkitError: decoding processes cannot be started.
        """
        if self._failure is not None:
            raise self._failure
        job = _Job(body, asyncio.get_running_loop().create_future())
        self._jobs.put_nowait(job)
        return await job.answer

    async def _work(self, place: _Place) -> None:
        """Keep one place at work. Where no process can be started, whoever waits for one is told."""
        try:
            await place.run()
        except PriorkitError as error:
            self._failure = error
            waiting = [*place.in_hand, *(self._jobs.get_nowait() for _ in range(self._jobs.qsize()))]
            for job in waiting:
                if not job.answer.done():
                    job.answer.set_exception(error)


@dataclass(eq=False)
class _Place:
    """One process at a time, and the bodies that are in its hands."""

    settings: DownloadSettings
    jobs: asyncio.Queue[_Job]
    in_hand: collections.deque[_Job] = field(default_factory=collections.deque)
    """The process works on the first; the others are sent, or about to be."""

    async def run(self) -> None:
        """Work until cancelled, by one process after the other if need be."""
        while True:
            process = await self._start()
            feeding = asyncio.create_task(self._feed(process))
            try:
                await self._collect(process)
            finally:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)
                fate = await process.end()
            if self.in_hand:
                self._settle(ImageError("decode", fate))

    async def _start(self) -> _Process:
        for _ in range(_STARTS - 1):
            with contextlib.suppress(PriorkitError):  # as of one that was ended where memory ran out
                return await _Process.start(self.settings)
        return await _Process.start(self.settings)

    async def _feed(self, process: _Process) -> None:
        """Hand bodies to the process, first those that a process before it has left."""
        process.watch(bool(self.in_hand))
        for job in list(self.in_hand):
            await process.send(job.body)
        while True:
            while len(self.in_hand) >= _IN_HAND:
                await process.answered.wait()
                process.answered.clear()
            job = await self.jobs.get()
            if job.answer.cancelled():
                continue
            self.in_hand.append(job)
            if len(self.in_hand) == 1:
                process.watch(True)
            await process.send(job.body)

    async def _collect(self, process: _Process) -> None:
        """Pass on answers until the process ends."""
        while (answer := await process.receive()) is not None:
            self._settle(answer)
            process.watch(bool(self.in_hand))
            process.answered.set()

    def _settle(self, answer: ResizedImage | ImageError) -> None:
        """Give the first job in hand its answer, unless nobody waits for it any more."""
        job = self.in_hand.popleft()
        if job.answer.cancelled():
            return
        if isinstance(answer, ImageError):
            job.answer.set_exception(answer)
        else:
            job.answer.set_result(answer)


class _Process:
    """A running decoding process."""

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
        """A process that is ready to work.

        Raises:
            PriorkitError: it ended before it was; the message says what it said.
        """
        ours, theirs = socket.socketpair()
        with tempfile.TemporaryFile() as errors:
            with theirs:
                for end in (ours, theirs):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
                child = _spawn(theirs, errors)
            try:
                reader, writer = await asyncio.open_connection(sock=ours)
            except BaseException:  # such as a cancelled start
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
            fate = await process.end()
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip()
        last = said.splitlines()[-1] if said else "it said nothing"
        raise PriorkitError(f"no process to decode images can be started: {fate}; {last}")

    async def send(self, message: bytes) -> None:
        """Hand over a message; waits while the process has not taken in most of it."""
        self._writer.write(LENGTH.pack(len(message)))
        self._writer.write(message)
        await self._writer.drain()

    async def receive(self) -> ResizedImage | ImageError | None:
        """The next answer; None when there is none to come."""
        message = await self._message()
        try:
            return None if message is None else unpack(message)
        except (ValueError, RecursionError):
            return None  # what talks nonsense is no longer ours

    async def _message(self) -> bytes | None:
        try:
            (size,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
            return await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def watch(self, at_work: bool) -> None:
        """Start the clock for the image that is worked on now, if there is one."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._limit, self._give_up) if at_work else None

    def _give_up(self) -> None:
        self._hung = True
        self._child.kill()

    async def end(self) -> str:
        """End the process, if it has not ended; tells what it has died of."""
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
    path = json.dumps([entry for entry in sys.path if isinstance(entry, str)])
    module = f"{__package__}.decoder_process"
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM.format(path=path, module=module)],
        stdin=connection.fileno(),
        stdout=connection.fileno(),
        stderr=errors,
        env={**os.environ, **without_spinning(os.environ), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,  # a Ctrl-C at the terminal is for this process alone
    )
