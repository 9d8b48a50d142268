"""Terminal output of commands: progress, summaries, tables and errors.

Results go to standard output; progress and errors go to standard error. Captions and URLs are untrusted text, so they
pass through `clean` and are never parsed as Rich markup.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import traceback
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..compute.stage import ProgressCallback, StagePlan, StageResult
from ..errors import Interrupted, PriorkitError
from ..explain import explain, report_bug
from .streams import FORCING_SIGNALS, StandardError, stop_signals

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories of invisible characters, which could control the terminal or reorder text."""


def clean(value: object) -> str:
    """Convert a value to a string, and replace control and other invisible characters by escapes such as `\\x1b`."""
    text = str(value)
    return "".join(c if unicodedata.category(c) not in _HIDDEN else c.encode("unicode_escape").decode() for c in text)


def print_line(text: str) -> None:
    """Print one line to standard output, with control and other invisible characters escaped."""
    print_text(f"{clean(text)}\n")


def print_text(text: str) -> None:
    """Print text to standard output unchanged."""
    with _standard_output():
        print(text, end="")


@contextlib.contextmanager
def _standard_output() -> Iterator[None]:
    """Context manager that raises PriorkitError if writing to standard output fails, for example on a full disk.

    If standard output is a pipe that its reader has closed, BrokenPipeError is raised instead.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise PriorkitError(
            f"standard output cannot be written ({error.strerror}); what is committed is kept"
        ) from None


def print_error(text: str) -> None:
    """Print an error message to standard error, after the label `error:`."""
    _print_labelled("error: ", "bold red", text)


def print_warning(text: str) -> None:
    """Print a warning to standard error, after the label `warning:`."""
    _print_labelled("warning: ", "bold yellow", text)


def _print_labelled(label: str, style: str, text: str) -> None:
    """Print a message to standard error: a label in the given Rich style, and then the text.

    Further lines of the text are indented, so that text from an input cannot pass for a message of its own. Control and
    other invisible characters are escaped.
    """
    line = Text(label, style=style)
    indent = f"\n{' ' * len(label)}"
    line.append(indent.join(clean(part) for part in text.split("\n")), style="default not bold")
    _error_console().print(line, soft_wrap=True)


def _error_console() -> Console:
    """Return a Rich console that prints to standard error and ignores failed writes."""
    return Console(file=cast(TextIO, StandardError()))


def print_json(value: Any) -> None:
    """Print a value as indented JSON to standard output."""
    print_text(f"{json.dumps(value, indent=1)}\n")


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table to standard output. It is at most 120 characters wide if standard output is not a terminal.

    A column is right-aligned if each of its cells is empty or starts with a digit or a minus sign.

    Args:
        title: line above the table.
        header: column names. If all of them are empty, no header is shown.
        rows: cells of each row.
    """
    table = Table(title=Text(clean(title)), title_justify="left", show_header=any(header))
    for name, column in zip(header, zip(*rows, strict=True), strict=False):
        numbers = all(str(cell)[:1].isdigit() or str(cell)[:1] in ("", "-") for cell in column)
        table.add_column(Text(clean(name)), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    width = None if sys.stdout.isatty() else 120
    with _standard_output():
        Console(width=width).print(table)


def print_result(result: StageResult) -> None:
    """Print a table that summarises the result of a pipeline stage, followed by the stage's notes about its input."""
    title = f"{result.stage}: {result.folder}"
    rows: list[tuple[str, str]] = [
        (result.unit, f"{result.units:,} ({result.done_now:,} done now, in {result.seconds:.1f} s)"),
    ]
    if result.unit != "rows":
        rows.append(("rows", f"{result.rows:,}"))
    if "input_samples" in result.statistics:
        rows.insert(1, ("samples of the input", f"{result.statistics['input_samples']:,}"))
    rows += [(f"  {outcome}", f"{number:,}") for outcome, number in sorted(result.counts.items())]
    rows.append(("device", result.device))
    if result.cluster:
        rows.append(("Ray", result.cluster))
    print_table(title, ("", ""), rows)
    print_notes(result.notes)


def print_notes(notes: Sequence[str]) -> None:
    """Print notes about a stage to standard output, one per line. Each line starts with the label `note:`."""
    for note in notes:
        print_line(f"note: {note}")


def print_plans(plans: Sequence[StagePlan]) -> None:
    """Print a table with one row per stage: its pending work, and an estimate of the disk space and time it needs.

    The time column says whether the time is estimated or computed from the measured rate of the work that is done.

    Args:
        plans: plan of each stage.
    """
    header = ("stage", "folder", "to do", "rows", "disk", "free", "time, about")
    rows = [
        (
            plan.stage,
            plan.folder,
            f"{plan.pending_units:,} of {plan.units:,} {plan.unit}",
            f"{plan.pending_rows:,}",
            in_bytes(plan.bytes_needed),
            "" if plan.bytes_free is None else in_bytes(plan.bytes_free),
            _duration(plan.seconds) + (f" ({plan.time_basis})" if plan.pending_units else ""),
        )
        for plan in plans
    ]
    print_table("plan (nothing was done; disk and time are estimates)", header, rows)
    for plan in plans:
        print_notes(plan.notes)


@contextlib.contextmanager
def progress_bar(description: str, unit: str, quiet: bool = False) -> Iterator[ProgressCallback]:
    """Context manager for a progress bar on standard error. It yields a callback that updates the bar.

    The callback takes the number of units done, the total number of units (None if unknown), and a note to show at the
    end of the line. The bar appears when the callback is first called.

    Args:
        description: text in front of the bar.
        unit: unit of the numbers shown, such as `rows`.
        quiet: True to show no bar.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    bar = Progress(*columns, console=_error_console(), disable=quiet)
    task = bar.add_task(clean(description), total=None, unit=unit, note="")

    def update(done: int, total: int | None, note: str) -> None:
        bar.start()
        bar.update(task, completed=done, total=total, note=clean(note))

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()


@contextlib.contextmanager
def reported_errors() -> Iterator[None]:
    """Context manager that prints an error message for an exception, then raises `typer.Exit` with an exit code.

    Typer's own exceptions, ModuleNotFoundError and BrokenPipeError propagate unchanged. Typer and the command's entry
    point handle them.
    """
    try:
        yield
    except (typer.Exit, typer.Abort, typer.BadParameter, ModuleNotFoundError):
        raise
    except BrokenPipeError:
        raise  # a reader such as `head` closed the pipe; the entry point exits without a message
    except (Exception, KeyboardInterrupt) as error:
        raise typer.Exit(report(error)) from None


def report(error: BaseException) -> int:
    """Print an error message for an exception, and return the exit code: 130 for an interruption, otherwise 1.

    If the exception is unexpected (a bug in priorkit), its traceback is written to a file. If the environment variable
    PRIORKIT_TRACEBACK is 1, the traceback of any exception, expected or not, is also printed.
    """
    message = explain(error)
    if os.environ.get("PRIORKIT_TRACEBACK", "0") not in ("", "0"):
        for line in "".join(traceback.format_exception(error)).splitlines():
            _error_console().print(Text(clean(line)), soft_wrap=True)
    print_error(report_bug(error) if message is None else message)
    return EXIT_INTERRUPTED if isinstance(error, Interrupted | KeyboardInterrupt) else EXIT_FAILURE


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Context manager that handles stop signals. It yields a function that returns True once a signal has arrived.

    The code in the `with` block calls the function at each point where it can stop safely, and stops if the result is
    True. If Ctrl-C or SIGTERM arrives a second time, KeyboardInterrupt is raised immediately.

    SIGHUP, SIGUSR1 and SIGUSR2 never raise it. A closing terminal sends SIGHUP twice, and batch systems send SIGUSR1 or
    SIGUSR2 as a warning before SIGTERM.
    """
    requested = False
    forcing_signals = 0

    def request(number: int, frame: Any) -> None:
        nonlocal requested, forcing_signals
        requested = True
        forcing_signals += number in FORCING_SIGNALS
        if forcing_signals > 1:
            raise KeyboardInterrupt

    previous = {number: signal.signal(number, request) for number in stop_signals()}
    try:
        yield lambda: requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def in_bytes(number: float) -> str:
    """Format a number of bytes with a decimal unit (B, kB, MB, GB or TB), as in `12 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


def _duration(seconds: float) -> str:
    """Format a duration with a suitable unit, as in `90 s`, `15 min` or `2.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
