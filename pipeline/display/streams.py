"""Handling of closed or failing standard streams, and of signals that stop a command.

This module imports no heavy dependencies.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from typing import Any, TextIO

FORCING_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Signals that ask a command to stop at the next safe point. A second such signal stops the command immediately."""
POLITE_SIGNALS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that ask a command to stop at the next safe point. Repeated signals do not stop it any sooner.

A closing terminal sends SIGHUP twice. Batch systems send SIGUSR1 or SIGUSR2 as a warning before SIGTERM.
"""


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that ask a command to stop: those in `FORCING_SIGNALS` and `POLITE_SIGNALS`.

    A signal in `POLITE_SIGNALS` is left out if this process ignores it. Under `nohup`, for example, it ignores SIGHUP.
    """
    polite = [number for number in POLITE_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return (*FORCING_SIGNALS, *polite)


def handle_stop_signals() -> None:
    """Make every signal in `stop_signals()` raise KeyboardInterrupt in this process.

    Temporary files and locks are then removed before the process exits.
    """

    def interrupt(number: int, frame: Any) -> None:
        if number in POLITE_SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # a second signal would interrupt the cleanup
        signal.raise_signal(signal.SIGINT)  # asyncio handles SIGINT itself

    for number in stop_signals():
        signal.signal(number, interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs with SIGINT ignored


def open_closed_streams() -> None:
    """Open the null device in place of each standard stream that was closed when the process started.

    Otherwise, the next file to be opened would get the file descriptor of a closed stream, and libraries that print to
    the stream would write into that file.

    Also configure standard output and standard error to write a backslash escape for each character that they cannot
    encode.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number: the closed one
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - stays open until exit
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 shows escapes


def flush_streams() -> OSError | None:
    """Flush standard output and standard error. Return the first OSError, or None if none is raised.

    Closed streams are skipped. A stream that cannot be flushed is redirected to the null device. Otherwise, the
    interpreter would flush it again at exit and print a traceback.
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
    """Redirect a stream to the null device, so that its pending output is discarded."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()


class StandardError:
    """Text stream that writes to standard error and ignores failed writes.

    Training therefore continues if the terminal is closed.
    """

    def write(self, text: str) -> int:
        """Write text, ignoring errors."""
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, ignoring errors."""
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)
