"""Standard streams that may be closed or full, and the signals that stop a command. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from typing import Any, TextIO

FORCING_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Signals that stop the work at once when they come a second time."""
POLITE_SIGNALS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that never force a stop: the end of a terminal, which is sent twice, and warnings of a batch system."""


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that ask a command to stop, without SIGHUP under `nohup`."""
    polite = [number for number in POLITE_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return (*FORCING_SIGNALS, *polite)


def handle_stop_signals() -> None:
    """Make every stop signal unwind the command as Ctrl-C does, so that temporary files and locks are removed."""

    def interrupt(number: int, frame: Any) -> None:
        if number in POLITE_SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # a second one would interrupt the clean-up
        signal.raise_signal(signal.SIGINT)  # asyncio handles SIGINT itself

    for number in stop_signals():
        signal.signal(number, interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs with SIGINT ignored


def open_closed_streams() -> None:
    """Replace closed standard streams by the null device.

    Otherwise the next opened file would get the descriptor of a closed stream, and libraries would print into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free descriptor: this one
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - stays open until exit
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 shows escapes


def flush_streams() -> OSError | None:
    """Flush the standard streams, and return the first error.

    A stream that fails is replaced by the null device. Otherwise the interpreter would flush it again at exit, and
    print a traceback.
    """
    first_error = None
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            if stream is not None:
                stream.flush()
        except OSError as error:
            first_error = first_error or error
            if stream is not None:
                _discard(stream)
        except ValueError:  # the stream is closed
            continue
    return first_error


def _discard(stream: TextIO) -> None:
    """Redirect a stream to the null device, and flush it there."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()


class StandardError:
    """Standard error that ignores failed writes, so that training continues when its terminal is closed."""

    def write(self, text: str) -> int:
        """Write text; ignore an error."""
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush; ignore an error."""
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)
