"""What reaches the terminal: hostile text is shown and steers nothing, errors become exit codes, bars appear late."""

from __future__ import annotations

import errno
import json
import os
import signal
import unicodedata

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from priorkit.pipeline import terminal
from priorkit.pipeline.errors import FolderError, InputError, Interrupted, PriorkitError, SettingsError
from priorkit.pipeline.stage import StagePlan, StageResult

STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")


@given(st.text())
def test_clean_text_steers_nothing(text: str) -> None:
    shown = terminal.clean(text)
    assert not [c for c in shown if unicodedata.category(c) in STEERING]
    shown.encode("utf-8")
    assert terminal.clean(shown) == shown


@given(st.text(st.characters(exclude_categories=STEERING)))
def test_clean_leaves_visible_text_alone(text: str) -> None:
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


def test_tables_hold_markup_and_long_text_whole(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "[red]x[/red] [/] \x1b[2J " + "word " * 60
    terminal.print_table("title [b]\x1b", ("na[i]me", "value"), [(hostile, 1), ("b", hostile)])
    out = capsys.readouterr().out
    assert "[red]x[/red] [/] \\x1b[2J" in out
    assert "title [b]\\x1b" in out
    assert "na[i]me" in out
    assert "\x1b" not in out
    assert out.count("word") == 120  # folded, never cut


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
        (KeyboardInterrupt(), 130, "the same command goes on from there"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 1, "no space left on the disk (/x/y); free some"),
        (OSError(errno.EDQUOT, "Quota"), 1, "no space left on the disk; free some"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 1, "not allowed to write or read: /x/y; change"),
        (OSError(errno.EROFS, "Read-only file system", "/x/y"), 1, "not allowed to write or read: /x/y"),
        (FileNotFoundError(errno.ENOENT, "No such file", "gone"), 1, "gone"),
        (ConnectionResetError("peer \x1b[2J"), 1, "ConnectionResetError: peer \\x1b[2J"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_an_exit_code(
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


@pytest.mark.parametrize("error", [ZeroDivisionError("bug"), AssertionError("bug"), ValueError("bug")])
def test_a_bug_of_ours_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error), match="bug"), terminal.reported_errors():
        raise error


def test_no_error_is_no_exit() -> None:
    with terminal.reported_errors():
        pass


def test_the_first_request_to_stop_is_asked_and_the_second_obeyed() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGINT, signal.SIGTERM):
        with terminal.stop_requests() as should_stop:
            assert not should_stop()
            os.kill(os.getpid(), number)
            assert should_stop()
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


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


def test_a_quiet_bar_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.progress_bar("download", "shards", quiet=True) as progress:
        progress(1, 3, "note")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_summary_names_what_was_done(capsys: pytest.CaptureFixture[str]) -> None:
    counts = {"success": 1234, "dns": 5}
    terminal.print_result(
        StageResult("download", "/data/images", 7, 3, "shards", 1239, 2.25, counts, cluster="2 workers")
    )
    out = capsys.readouterr().out
    for shown in ("download: /data/images", "7 (3 done now, in 2.2 s)", "1,239", "1,234", "dns", "device", "2 workers"):
        assert shown in out
    assert len(out.splitlines()) < 24


def test_a_plan_names_disk_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    plan = StagePlan("embed", "s3://bucket/x", 10, 4, "shards", 40_000, 3_400_000_000, None, 9000.0)
    terminal.print_plans([plan])
    out = capsys.readouterr().out
    for shown in ("embed", "s3://bucket/x", "4 of 10 shards", "40,000", "3 GB", "2.5 h", "nothing was done"):
        assert shown in out


def test_a_reader_that_has_gone_is_left_to_click() -> None:
    with pytest.raises(BrokenPipeError), terminal.reported_errors():
        raise BrokenPipeError(32, "Broken pipe")
