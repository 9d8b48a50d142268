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
        ["bash", "-c", command], capture_output=True, text=True, cwd=folder, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder), **environment},
    )  # fmt: skip


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    done = shell(f"{PRIORKIT} --version", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"priorkit {__version__}\n", "")


@pytest.mark.parametrize(
    ("command", "code", "stderr"),
    [
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
        "            time.sleep(3600)\n"
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
    assert process.communicate(timeout=600)[1] == ""
    assert process.returncode == -signal.SIGINT


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
VALIDATE_EACH = """
import os, sys
import priorkit.cli, priorkit.pipeline.display.terminal, priorkit.recipes.recipe
from priorkit.__main__ import main
pids = []
for name in sys.argv[1:]:
    pids.append(os.fork())
    if pids[-1] == 0:
        os.dup2(os.open(name + ".stderr", os.O_WRONLY | os.O_CREAT), 2)
        sys.argv = ["priorkit", "recipes", "validate", name]
        main()
print(*pids, flush=True)
print(*(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids))
"""
"""Run a command for each recipe, in processes that do not each import it; print their ids, then their exit codes."""


def test_each_signal_ends_a_command_with_a_message(tmp_path: Path) -> None:
    names = [f"{number.name}.yaml" for number in SIGNALS]
    for name in names:
        os.mkfifo(tmp_path / name)  # the command waits for a writer
    process = subprocess.Popen(
        [sys.executable, "-c", VALIDATE_EACH, *names], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pids = map(int, process.stdout.readline().split())
    writers: list[int] = []
    for number, name, pid in zip(SIGNALS, names, pids, strict=True):
        while len(writers) <= names.index(name):
            try:
                writers.append(os.open(tmp_path / name, os.O_WRONLY | os.O_NONBLOCK))  # once it has opened the pipe
            except OSError:
                time.sleep(0.05)
        os.kill(pid, number)
    assert process.communicate(timeout=600)[0].split() == ["130"] * len(SIGNALS)
    for writer in writers:
        os.close(writer)
    for name in names:
        assert (tmp_path / f"{name}.stderr").read_text() == (
            "error: interrupted; what is committed is kept, the same command resumes from there\n"
        )
