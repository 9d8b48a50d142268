"""The command as a process: closed, full and broken streams, signals, and `python -m priorkit`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from priorkit import __version__
from priorkit.recipes.recipe import recipe_text

PRIORKIT = f"{sys.executable} -m priorkit"
BUG = """
import sys
from priorkit import __main__
from priorkit.recipes import recipe
def recipe_names():
    raise ZeroDivisionError("bug")
recipe.recipe_names = recipe_names
sys.argv = ["priorkit", "recipes", "list"]
__main__.main()
"""


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=folder, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder), **environment},
    )  # fmt: skip


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    done = shell(f"{PRIORKIT} --version", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"priorkit {__version__}\n", "")


@pytest.mark.parametrize(
    ("command", "code", "stderr"),
    [
        ("recipes list --json 2>/dev/null | (read x; exit 0); exit ${PIPESTATUS[0]}", (0, 1), ""),
        ("recipes list --json | true; exit ${PIPESTATUS[0]}", (0, 1), ""),
        ("--help | true; exit ${PIPESTATUS[0]}", (0, 1), ""),
        ("--version > /dev/full", (1,), "error: standard output cannot be written (No space left on device)\n"),
        ("recipes list > /dev/full", (1,), "error: standard output cannot be written (No space left on device)"),
        ("recipes list --json > /dev/full", (1,), "error: standard output cannot be written (No space left"),
        ("recipes list >&-", (0,), ""),
        ("--help >&-", (0,), ""),
        ("status >&- 2>&- <&-", (0,), ""),
        ("recipes copy nothing 2>&-", (1,), ""),
        ("recipes copy nothing 2> /dev/full", (1,), ""),
        ("no-such-command 2>&-", (2,), ""),
        ("no-such-command 2> /dev/full", (1, 2), ""),
        ("recipes copy nothing >&-", (1,), "error: no recipe 'nothing'"),
        ("recipes validate $'\\xff\\xfe.yaml'", (1,), "\\udcff\\udcfe.yaml: no such recipe file"),
        (f"recipes validate {'a' * 300}", (1,), "is longer than the file system takes"),
        ("recipes validate /dev/null/x", (1,), "error: "),
        ("recipes validate /", (1,), "error: /: not a recipe file"),
    ],
)
def test_broken_streams_end_the_command_without_a_traceback(
    command: str, code: tuple[int, ...], stderr: str, tmp_path: Path
) -> None:
    done = shell(f"{PRIORKIT} {command}", tmp_path)
    assert done.returncode in code, done
    assert done.stderr.startswith(stderr) if stderr.startswith("error") else stderr in done.stderr
    assert bool(done.stderr) == bool(stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.stderr.count("\n") <= 1


def test_a_file_does_not_replace_a_closed_stream(tmp_path: Path) -> None:
    """The first opened file would otherwise get the descriptor of standard output."""
    done = shell(f"{PRIORKIT} recipes copy demo >&-", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo.yaml").read_text() == recipe_text("demo")


def test_an_internal_error_is_one_line_and_a_traceback_file(tmp_path: Path) -> None:
    (tmp_path / "bug.py").write_text(BUG)
    done = shell(f"{sys.executable} bug.py", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"error: internal error: ZeroDivisionError: bug at recipes/\S+; this is a bug .*\n", done.stderr
    )
    (path,) = tmp_path.glob("priorkit-traceback-*.txt")
    assert 'raise ZeroDivisionError("bug")' in path.read_text()
    shown = shell(f"{sys.executable} bug.py", tmp_path, PRIORKIT_TRACEBACK="1")
    assert shown.stderr.startswith("Traceback (most recent call last):")


def test_ctrl_c_while_modules_load_prints_nothing(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import sys, time\n"
        "class Slow:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'priorkit.cli':\n"
        "            print('loading', flush=True)\n"
        "            time.sleep(60)\n"
        "sys.meta_path.insert(0, Slow())\n"
        "from priorkit.__main__ import main\n"
        "main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "slow.py"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_ends_a_command_with_a_message(number: signal.Signals, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "recipe.yaml")  # the command waits for a writer
    process = subprocess.Popen(
        [*PRIORKIT.split(), "recipes", "validate", "recipe.yaml"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    writer = None
    while writer is None:
        try:
            writer = os.open(tmp_path / "recipe.yaml", os.O_WRONLY | os.O_NONBLOCK)  # once it has opened the pipe
        except OSError:
            time.sleep(0.05)
    process.send_signal(number)
    stderr = process.communicate(timeout=60)[1]
    os.close(writer)
    assert process.returncode == 130
    assert stderr == "error: interrupted; what is committed is kept, the same command resumes from there\n"
