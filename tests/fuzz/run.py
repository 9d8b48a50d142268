"""Fuzz the parsers: damaged inputs, each a function of seed, parser and number, must be read or refused by name.

    python tests/fuzz/run.py --seconds 60                                # all parsers, a minute in all
    python tests/fuzz/run.py --parser npy --minutes 10 --seed 1          # one parser
    python tests/fuzz/run.py --parser npy --seed 1 --case 17 --keep DIR  # one input again, kept in a folder

Each parser runs in a process of its own, so that a crash is seen. A finding is any exception but priorkit's own, a
crash, or an input that takes more than 10 seconds of processor time.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

HANG_SECONDS = 10.0
"""Processor time of one input."""
SILENT_SECONDS = 120.0
"""Time of one input that waits for something, on a busy machine."""
MEMORY_BYTES = 16 << 30
"""Address space of a parser: damaged sizes must not take the machine's memory."""
NAMES = ("lists", "tables", "tars", "npy", "recipes", "manifests", "priors")


def run_cases(name: str, seed: int, first: int, only: bool, keep: str | None) -> None:
    """Run cases until the process is ended, and print the number before each and a finding after it."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("fuzz_parsers", Path(__file__).with_name("parsers.py"))
    assert spec is not None
    assert spec.loader is not None
    parsers = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = parsers
    spec.loader.exec_module(parsers)
    from priorkit.pipeline.errors import PriorkitError

    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    parser = parsers.PARSERS[name]
    number = first
    with tempfile.TemporaryDirectory(prefix="priorkit-fuzz-") as scratch:
        folder = Path(keep or f"{scratch}/input")
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            parser.prepare(random.Random(f"{seed} {name} {number}"), folder)
            print(f"case {number}", flush=True)
            try:
                parser.parse(folder)
            except PriorkitError:
                pass
            except Exception:
                print("finding " + repr(traceback.format_exc()), flush=True)
            print("done", flush=True)
            if only:
                return
            shutil.rmtree(folder)
            number += 1


class Child:
    """The process of one parser, and the case that it works on."""

    def __init__(self, name: str, seed: int, first: int, *more: str) -> None:
        command = [
            sys.executable,
            __file__,
            "--child",
            "--parser",
            name,
            "--seed",
            str(seed),
            "--case",
            str(first),
            *more,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.errors, env=environment)
        self.case: int | None = None
        self.started = time.monotonic()
        self.used = 0.0
        self.pending = b""

    def lines(self) -> list[str] | None:
        """Lines that came within a second; None at the end."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], 1.0)[0]:
            return []
        data = os.read(self.process.stdout.fileno(), 1 << 20)
        if not data:
            return None
        *whole, self.pending = (self.pending + data).split(b"\n")
        return [line.decode(errors="replace") for line in whole]

    def processor_seconds(self) -> float:
        """Processor time that the process has had."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def begin(self, case: int) -> None:
        """Start the clocks of a case."""
        self.case, self.started, self.used = case, time.monotonic(), self.processor_seconds()

    def hangs(self) -> bool:
        """Whether the case takes too long."""
        if self.case is None:
            return False
        return self.processor_seconds() - self.used > HANG_SECONDS or time.monotonic() - self.started > SILENT_SECONDS

    def end(self, number: int = signal.SIGKILL) -> str:
        """End the process, and return the end of what it wrote to standard error."""
        self.process.send_signal(number)
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.errors.seek(0)
        said = self.errors.read().decode(errors="replace")
        self.errors.close()
        return said[-3000:]


def fuzz(name: str, seed: int, seconds: float, first: int = 0) -> tuple[int, dict[str, tuple[int, str]]]:
    """Run one parser for so long; returns how many cases it had, and findings by their place."""
    findings: dict[str, tuple[int, str]] = {}
    counts: collections.Counter[str] = collections.Counter()
    child, done, end = Child(name, seed, first), 0, None
    number = first
    while end is None or time.monotonic() < end:
        lines = child.lines()
        for line in lines or []:
            kind, _, rest = line.partition(" ")
            if kind == "case":
                number = int(rest)
                child.begin(number)
                end = end or time.monotonic() + seconds  # loading the parsers does not count
            elif kind == "done":
                child.case, done = None, done + 1
            elif kind == "finding":
                text = str(eval(rest))  # the repr of a text that this script printed
                place = _place(text)
                counts[place] += 1
                findings.setdefault(place, (number, text))
        if lines is None or child.hangs():
            hang = lines is not None
            said = child.end(signal.SIGABRT if hang else signal.SIGKILL)
            what = "hang" if hang else f"crash, code {child.process.returncode}"
            if child.case is None:
                raise SystemExit(f"the parser {name!r} ended outside of a case ({what}):\n{said}")
            findings.setdefault(f"{what} in {_place(said)}", (number, f"{what}\n{said}"))
            child = Child(name, seed, number + 1)
    child.end()
    for place, count in counts.most_common():
        print(f"  {count:,} times: {place}")
    return done, findings


def _place(text: str) -> str:
    """The exception, and priorkit's innermost line: one finding, however many inputs show it."""
    frames = [line.strip() for line in text.splitlines() if line.strip().startswith("File ") and "priorkit" in line]
    last = text.strip().splitlines()[-1] if text.strip() else ""
    return f"{last.partition(':')[0][:80]} at {frames[-1] if frames else '?'}"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--parser", choices=NAMES, action="append", help="may be repeated; all by default")
    arguments.add_argument("--seconds", type=float, default=60.0, help="for all parsers together")
    arguments.add_argument("--minutes", type=float, help="for each parser")
    arguments.add_argument("--seed", type=int, default=None)
    arguments.add_argument("--case", type=int, default=None, help="only this input")
    arguments.add_argument("--keep", default=None, help="folder to write that input to")
    arguments.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    seed = random.SystemRandom().randrange(2**32) if chosen.seed is None else chosen.seed
    names = chosen.parser or list(NAMES)
    if chosen.child:
        run_cases(names[0], seed, chosen.case, False, None)
    if chosen.case is not None:
        run_cases(names[0], seed, chosen.case, True, chosen.keep)
        return 0
    seconds = chosen.minutes * 60 if chosen.minutes else chosen.seconds / len(names)
    found = 0
    print(f"seed {seed}, {seconds:.0f} s for each of {', '.join(names)}", flush=True)
    for name in names:
        cases, findings = fuzz(name, seed, seconds)
        print(f"{name}: {cases:,} inputs, {len(findings)} findings", flush=True)
        for place, (number, text) in findings.items():
            print(f"\n{place}\nagain: python tests/fuzz/run.py --parser {name} --seed {seed} --case {number}\n{text}")
        found += len(findings)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
