"""Standard streams that may be closed, full or gone, and the signals that stop a command. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from typing import Any, TextIO

FORCING_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Signals of which a second one stops the work at once."""
POLITE_SIGNALS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""The end of a terminal, which comes from the kernel and from the shell, and the warnings of a batch system."""


def stop_signals() -> tuple[signal.Signals, ...]:
    """The signals that ask a command to stop; `nohup` leaves out SIGHUP."""
    polite = [number for number in POLITE_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return (*FORCING_SIGNALS, *polite)


def handle_stop_signals() -> None:
    """Let every stop signal unwind the command as Ctrl-C does, so that temporary files and locks go."""

    def interrupt(number: int, frame: Any) -> None:
        if number in POLITE_SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # a second one would interrupt what cleans up
        signal.raise_signal(signal.SIGINT)  # asyncio unwinds by its own handler of this one

    for number in stop_signals():
        signal.signal(number, interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with it ignored


def open_closed_streams() -> None:
    """Put the null device in place of closed standard streams.

    The next file that is opened would get a closed stream's number, and what a library prints would end up in it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number, this one
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - open as long as the process
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 shows escapes


def flush_streams() -> OSError | None:
    """Write out what the standard streams hold, and return the error if they cannot take it.

    A stream that fails is replaced by the null device: the interpreter flushes it again as it ends, and would print
    a traceback.
    """
    failed = None
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            if stream is not None:
                stream.flush()
        except OSError as error:
            failed = failed or error
            if stream is not None:
                _discard(stream)
        except ValueError:  # it is closed
            continue
    return failed


def _discard(stream: TextIO) -> None:
    with contextlib.suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)
        stream.flush()


class StandardError:
    """Standard error that loses what it cannot write: a terminal that has gone must not end a training."""

    def write(self, text: str) -> int:
        """Write text, or lose it."""
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or lose what is left."""
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)
