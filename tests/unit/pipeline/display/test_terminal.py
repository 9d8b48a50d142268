"""Terminal output: untrusted text is escaped, errors become exit codes, and bars appear with the first progress."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import sys
import tempfile
import unicodedata
import zipfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st

from priorkit.pipeline.compute.stage import StagePlan, StageResult
from priorkit.pipeline.display import terminal
from priorkit.pipeline.errors import FolderError, InputError, Interrupted, PriorkitError, SettingsError

STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")


@given(st.text())
def test_clean_text_has_no_control_characters(text: str) -> None:
    shown = terminal.clean(text)
    assert not [c for c in shown if unicodedata.category(c) in STEERING]
    shown.encode("utf-8")
    assert terminal.clean(shown) == shown


@given(st.text(st.characters(exclude_categories=STEERING)))
def test_clean_does_not_change_visible_text(text: str) -> None:
    assert terminal.clean(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\r\n\tb", "a\\r\\n\\tb"),
        ("\u202eabc\u2066", "\\u202eabc\\u2066"),
        ("\x9b2J\x00", "\\x9b2J\\x00"),
        ("line\u2028end\u2029", "line\\u2028end\\u2029"),
        ("half \ud83d", "half \\ud83d"),
        ("[bold]x[/bold] [/]", "[bold]x[/bold] [/]"),
        (None, "None"),
        (3.5, "3.5"),
    ],
)
def test_clean_by_example(text: object, shown: str) -> None:
    assert terminal.clean(text) == shown


def test_tables_show_markup_and_long_text_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "[red]x[/red] [/] \x1b[2J " + "word " * 60
    terminal.print_table("title [b]\x1b", ("na[i]me", "value"), [(hostile, 1), ("b", hostile)])
    out = capsys.readouterr().out
    assert "[red]x[/red] [/] \\x1b[2J" in out
    assert "title [b]\\x1b" in out
    assert "na[i]me" in out
    assert "\x1b" not in out
    assert out.count("word") == 120  # folded, never cut


def test_further_lines_of_an_error_are_indented(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_error("what it is.\nWhat to do\x1b\nerror: not so")
    assert capsys.readouterr().err == "error: what it is.\n       What to do\\x1b\n       error: not so\n"


def test_lines_and_errors_are_clean(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_line("\x1b[2J[b]")
    terminal.print_error("a [b]bad[/b] value \x07" + "x" * 300)
    terminal.print_warning("[i]\x1b")
    captured = capsys.readouterr()
    assert captured.out == "\\x1b[2J[b]\n"
    assert captured.err == "error: a [b]bad[/b] value \\x07" + "x" * 300 + "\nwarning: [i]\\x1b\n"


def test_json_is_ascii_and_parses(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"caption": "\x1b \u202e \U0001f469"}
    terminal.print_json(value)
    out = capsys.readouterr().out
    assert out.isascii()
    assert "\x1b" not in out
    assert json.loads(out) == value


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (PriorkitError("bad value 3; use 4"), 1, "error: bad value 3; use 4\n"),
        (SettingsError("no"), 1, "error: no\n"),
        (InputError("no"), 1, "error: no\n"),
        (FolderError("no"), 1, "error: no\n"),
        (Interrupted("stopped after step 3"), 130, "error: stopped after step 3\n"),
        (KeyboardInterrupt(), 130, "the same command resumes from there"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 1, "no space left on the disk (/x/y); free some"),
        (OSError(errno.EDQUOT, "Quota"), 1, "no space left on the disk ([Errno 122] Quota); free some"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 1, "not allowed to write or read: /x/y; change"),
        (OSError(errno.EROFS, "Read-only file system", "/x/y"), 1, "not allowed to write or read: /x/y"),
        (FileNotFoundError(errno.ENOENT, "No such file", "gone"), 1, "gone: no such file or folder"),
        (FileNotFoundError("bucket/gone"), 1, "bucket/gone"),
        (NotADirectoryError(errno.ENOTDIR, "", "a/b"), 1, "a/b has a file where a folder is needed"),
        (IsADirectoryError(errno.EISDIR, "", "a"), 1, "a is a folder, and a file is needed"),
        (OSError(errno.ENAMETOOLONG, "", "a" * 9), 1, "aaaaaaaaa is longer than the file system takes"),
        (OSError(errno.EMFILE, "Too many open files", "a"), 1, "too many open files (a); raise the limit"),
        (OSError(errno.ELOOP, "", "a"), 1, "a is a circle of symbolic links"),
        (OSError(errno.ENOSYS, "", "a"), 1, "a: the file system cannot do this"),
        (OSError(errno.ENOENT, "", "a\udcff"), 1, "a\\udcff: no such file"),
        (socket.gaierror(-2, "Name or service not known"), 1, "the name of a host cannot be found (Name or service"),
        (MemoryError(), 1, "out of memory (MemoryError); use smaller batches"),
        (pa.ArrowMemoryError("malloc of size 9 failed"), 1, "out of memory (malloc of size 9 failed)"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), 1, "out of memory (CUDA out of memory. Tried)"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), 1, "out of memory (DefaultCPU"),
        (RecursionError("maximum recursion depth"), 1, "an input is nested too deeply to be read"),
        (pa.ArrowInvalid("bad\nfooter"), 1, "a file cannot be read (ArrowInvalid: bad footer); `priorkit inspect`"),
        (zipfile.BadZipFile("no zip"), 1, "a file cannot be read (BadZipFile: no zip)"),
        (json.JSONDecodeError("Expecting value", "", 0), 1, "a file cannot be read (JSONDecodeError: Expecting"),
        (RuntimeError("x" * 9), 1, "internal error: RuntimeError: xxxxxxxxx at "),
        (ConnectionResetError("peer \x1b[2J"), 1, "ConnectionResetError: peer \\x1b[2J"),
    ],
)
def test_an_error_of_the_user_is_one_line_and_an_exit_code(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as caught, terminal.reported_errors():
        raise error
    assert caught.value.exit_code == code
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize("error", [ZeroDivisionError("bug"), AssertionError("bug"), ValueError("bug\n\x1b[2J")])
def test_a_bug_is_one_line_and_a_traceback_in_a_file(
    error: Exception, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(typer.Exit) as caught, terminal.reported_errors():
        raise error
    assert caught.value.exit_code == 1
    shown = capsys.readouterr().err
    assert re.fullmatch(
        r"error: internal error: \w+: bug.* at tests/unit/pipeline/display/test_terminal.py:\d+; "
        "this is a bug in priorkit: "
        r"please report it with \S+\n",
        shown,
    )
    assert "\x1b" not in shown
    (path,) = tmp_path.iterdir()
    assert str(path) in shown
    assert path.read_text().startswith("Traceback (most recent call last):")


def test_a_bug_is_reported_without_a_folder_for_its_traceback(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    monkeypatch.setenv("PRIORKIT_TRACEBACK", "1")
    with pytest.raises(typer.Exit), terminal.reported_errors():
        raise ZeroDivisionError("bug")
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last):")
    assert "please report it with what PRIORKIT_TRACEBACK=1 shows\n" in shown


def test_no_error_is_no_exit() -> None:
    with terminal.reported_errors():
        pass


@pytest.mark.parametrize(
    "library", ["httpx", "httpx2", "httpcore", "requests.exceptions", "urllib3", "botocore.exceptions"]
)
@pytest.mark.parametrize("base", [Exception, OSError])
def test_an_unreachable_hub_is_named(library: str, base: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    """The class of the exception decides, or of one that caused it."""
    raised = type("ConnectError", (base,), {"__module__": library})
    derived = type("Derived", (raised,), {"__module__": "elsewhere"})
    caused = RuntimeError("while the model was loaded")
    caused.__cause__ = raised("no route")
    for error in (raised("[Errno -2] Name or service not known"), derived("x"), caused):
        with pytest.raises(typer.Exit) as caught, terminal.reported_errors():
            raise error
        assert caught.value.exit_code == 1
        assert (
            capsys.readouterr().err
            == f"error: remote storage: {error}; check its address, the network and your credentials\n"
        )


def test_a_missing_file_of_a_remote_store_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    error = FileNotFoundError(errno.ENOENT, "", "bucket/key")
    error.__cause__ = type("ClientError", (Exception,), {"__module__": "botocore.exceptions"})("404")
    with pytest.raises(typer.Exit), terminal.reported_errors():
        raise error
    assert capsys.readouterr().err == "error: bucket/key: no such file or folder\n"


def test_a_second_stop_signal_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGINT, signal.SIGTERM):
        with terminal.stop_requests() as should_stop:
            assert not should_stop()
            os.kill(os.getpid(), number)
            assert should_stop()
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_hangups_and_warnings_of_a_batch_system_do_not_force_a_stop() -> None:
    """The kernel and the shell both send SIGHUP; a batch system sends SIGTERM after its warning."""
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        with terminal.stop_requests() as should_stop:
            os.kill(os.getpid(), number)
            assert should_stop()
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminal.stop_requests() as should_stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not should_stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_output_to_a_closed_terminal_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        with terminal.progress_bar("train", "steps") as progress:
            progress(1, 3, "")
        terminal.print_error("lost")
        monkeypatch.undo()
        with pytest.raises(OSError):
            full.write("x\n")
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


def test_full_standard_output_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        for show in (lambda: terminal.print_line("x"), lambda: terminal.print_table("t", ("a",), [("b",)])):
            with pytest.raises(PriorkitError, match=r"standard output cannot be written \(No space left on device\)"):
                show()
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


def test_a_bar_appears_with_the_first_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.progress_bar("download", "shards"):
        pass
    with pytest.raises(ZeroDivisionError), terminal.progress_bar("download", "shards"):
        raise ZeroDivisionError
    assert capsys.readouterr().err == ""
    with terminal.progress_bar("down[b]load", "shards") as progress:
        progress(0, 3, "")
        progress(3, 3, "[/no] [bold]markup[/bold] \x1b[2J")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "down[b]load" in captured.err
    assert "3/3 shards" in captured.err
    assert "[/no] [bold]markup[/bold] \\x1b[2J" in captured.err
    assert "\x1b" not in captured.err


def test_a_quiet_bar_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.progress_bar("download", "shards", quiet=True) as progress:
        progress(1, 3, "note")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_summary_shows_the_work_done(capsys: pytest.CaptureFixture[str]) -> None:
    counts = {"success": 1234, "dns": 5}
    terminal.print_result(
        StageResult("download", "/data/images", 7, 3, "shards", 1239, 2.25, counts, cluster="2 workers")
    )
    out = capsys.readouterr().out
    for shown in ("download: /data/images", "7 (3 done now, in 2.2 s)", "1,239", "1,234", "dns", "device", "2 workers"):
        assert shown in out
    assert len(out.splitlines()) < 24


def test_a_plan_shows_disk_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    plan = StagePlan("embed", "s3://bucket/x", 10, 4, "shards", 40_000, 3_400_000_000, None, 9000.0)
    terminal.print_plans([plan])
    out = capsys.readouterr().out
    for shown in ("embed", "s3://bucket/x", "4 of 10 shards", "40,000", "3 GB", "2.5 h (estimate)", "nothing was done"):
        assert shown in out
    terminal.print_plans([replace(plan, time_basis="measured"), replace(plan, pending_units=0, seconds=0.0)])
    out = capsys.readouterr().out
    assert "2.5 h (measured)" in out
    assert out.count("(") == 2  # nothing is left to do for the second, and the title has the other one


def test_a_closed_pipe_is_left_to_the_entry_point() -> None:
    with pytest.raises(BrokenPipeError), terminal.reported_errors():
        raise BrokenPipeError(32, "Broken pipe")
