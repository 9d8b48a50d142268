"""Messages for exceptions of Python and other libraries."""

from __future__ import annotations

import errno
import os
import socket
import zipfile
from pathlib import Path

import pytest

from priorkit.pipeline.errors import InputError
from priorkit.pipeline.explain import explain, one_line, report_bug


def remote_error() -> Exception:
    return type("ClientError", (Exception,), {"__module__": "botocore.exceptions"})("denied")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InputError("as it is"), "as it is"),
        (KeyboardInterrupt(), "interrupted; what is committed is kept"),
        (OSError(errno.ENOSPC, "", "/x/y"), "no space left on the disk (/x/y)"),
        (OSError(errno.EDQUOT, "", "/x/y"), "no space left on the disk (/x/y)"),
        (PermissionError(errno.EPERM, "", "a", None, "b"), "not allowed to write or read: a or b"),
        (FileNotFoundError(errno.ENOENT, "", b"/x"), "/x: no such file or folder"),
        (OSError(errno.EMFILE, "Too many"), "too many open files ([Errno 24] Too many)"),
        (OSError(12345, "new"), "OSError: [Errno 12345] new"),
        (socket.gaierror(-2, "Name unknown"), "the name of a host cannot be found (Name unknown)"),
        (MemoryError(), "out of memory (MemoryError)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory (DefaultCPU"),
        (RecursionError("x"), "an input is nested too deeply"),
        (zipfile.BadZipFile("no zip"), "a file cannot be read (BadZipFile: no zip)"),
        (remote_error(), "remote storage: denied; check its address"),
    ],
)
def test_the_message_says_what_happened(error: BaseException, message: str) -> None:
    text = explain(error)
    assert text is not None
    assert text.startswith(message)


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("x"), AssertionError()])
def test_other_exceptions_have_no_message(error: BaseException) -> None:
    assert explain(error) is None


def test_a_cause_from_a_remote_library_counts_but_not_for_a_missing_file() -> None:
    error = OSError("wrapped")
    error.__cause__ = remote_error()
    assert str(explain(error)).startswith("remote storage: wrapped")
    missing = FileNotFoundError(errno.ENOENT, "", "s3://x")
    missing.__cause__ = remote_error()
    assert explain(missing) == "s3://x: no such file or folder"
    error.__cause__.__cause__ = error  # a cycle ends
    assert explain(error) is not None


def test_a_text_is_put_on_one_line_of_limited_length() -> None:
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(ValueError()) == "ValueError"
    assert one_line(ValueError("x" * 300)) == "x" * 300
    assert one_line(ValueError("x" * 301)) == "x" * 297 + "..."
    assert one_line(ValueError("12345678"), 6) == "123..."


def test_a_bug_is_reported_with_its_line_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    try:
        one_line(None, "x")  # type: ignore[arg-type]
    except TypeError as error:
        text = report_bug(error)
    (file,) = tmp_path.iterdir()
    assert text.startswith("internal error: TypeError: ")
    assert " at pipeline/explain.py:" in text
    assert text.endswith(f"please report it with {file}")
    assert "Traceback" in file.read_text()
    monkeypatch.setattr("tempfile.tempdir", os.path.join(tmp_path, "none"))
    assert "PRIORKIT_TRACEBACK=1" in report_bug(ValueError("x"))
