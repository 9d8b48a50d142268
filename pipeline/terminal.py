"""What a person sees in the terminal: progress, summaries, tables and errors. Used by the commands only.

Results go to standard output, progress and errors to standard error. Captions and URLs are hostile text: what is
printed passes through `clean`, and never through Rich's markup.
"""

from __future__ import annotations

import contextlib
import errno
import json
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .errors import Interrupted, PriorkitError
from .stage import ProgressCallback, StagePlan, StageResult

_REMOTE_LIBRARIES = frozenset({"aiobotocore", "botocore", "gcsfs", "google", "huggingface_hub"})
"""What fsspec's file systems are built on: they raise exceptions of their own."""

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories that steer a terminal or reorder text instead of being seen."""


def clean(value: object) -> str:
    """Text that shows as it is and steers nothing: control characters become visible escapes."""
    text = str(value)
    return "".join(c if unicodedata.category(c) not in _HIDDEN else c.encode("unicode_escape").decode() for c in text)


def print_line(text: str) -> None:
    """Print one line to standard output."""
    print(clean(text))


def print_error(text: str) -> None:
    """Print an error to standard error."""
    _print_labelled("error: ", "bold red", text)


def print_warning(text: str) -> None:
    """Print a warning to standard error."""
    _print_labelled("warning: ", "bold yellow", text)


def _print_labelled(label: str, style: str, text: str) -> None:
    line = Text(label, style=style)
    line.append(clean(text), style="default not bold")
    Console(stderr=True).print(line, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one JSON value to standard output."""
    print(json.dumps(value, indent=1))


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table to standard output, columns of numbers to the right."""
    table = Table(title=Text(clean(title)), title_justify="left", show_header=any(header))
    for name, column in zip(header, zip(*rows, strict=True), strict=False):
        numbers = all(str(cell)[:1].isdigit() or str(cell)[:1] in ("", "-") for cell in column)
        table.add_column(Text(clean(name)), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    width = None if sys.stdout.isatty() else 120
    Console(width=width).print(table)


def print_result(result: StageResult) -> None:
    """The summary of a stage, on one screen."""
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
    """Print what a user should know about the input, a line each."""
    for note in notes:
        print_line(f"note: {note}")


def print_plans(plans: Sequence[StagePlan]) -> None:
    """What would be done, with what it takes."""
    header = ("stage", "folder", "to do", "rows", "disk", "free", "time, about")
    rows = [
        (
            plan.stage,
            plan.folder,
            f"{plan.pending_units:,} of {plan.units:,} {plan.unit}",
            f"{plan.pending_rows:,}",
            in_bytes(plan.bytes_needed),
            "" if plan.bytes_free is None else in_bytes(plan.bytes_free),
            _duration(plan.seconds),
        )
        for plan in plans
    ]
    print_table("plan (nothing was done; disk and time are estimates)", header, rows)


@contextlib.contextmanager
def progress_bar(description: str, unit: str, quiet: bool = False) -> Iterator[ProgressCallback]:
    """A progress bar on standard error, shown once there is progress; yields what the work calls to move it."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    bar = Progress(*columns, console=Console(stderr=True), disable=quiet)
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
    """Turn what a user can mend into a message and an exit code; bugs keep their traceback."""
    try:
        yield
    except Interrupted as error:
        print_error(str(error))
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except KeyboardInterrupt:
        print_error("interrupted; what is committed is kept, the same command goes on from there")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except PriorkitError as error:
        print_error(str(error))
        raise typer.Exit(EXIT_FAILURE) from None
    except BrokenPipeError:
        raise  # whoever read the output has gone, as `head` does: click ends without a word
    except OSError as error:
        print_error(_explain(error))
        raise typer.Exit(EXIT_FAILURE) from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _REMOTE_LIBRARIES:
            raise
        print_error(f"remote storage: {error}; check its address and your credentials")
        raise typer.Exit(EXIT_FAILURE) from None


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """While the block runs, Ctrl-C and SIGTERM ask the work to stop at its next safe point; a second one at once."""
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _explain(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" ({error.filename})" if error.filename else ""
        return f"no space left on the disk{where}; free some: what is committed is kept, the same command goes on"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"not allowed to write or read: {error.filename or error}; change its permissions or name another folder"
    return f"{type(error).__name__}: {error}"


def in_bytes(number: float) -> str:
    """A number of bytes, short."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
