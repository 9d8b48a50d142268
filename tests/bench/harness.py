"""Timing in turns, the machine's limits, and dated pages of results."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "benchmarks"


def in_turns(actions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each action in each round: A B A B, so that a machine that slows down slows them all."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """The median of the ratios of each round."""
    return median([above / below for above, below in zip(numerator, denominator, strict=True)])


def report(results: list[dict[str, Any]], **values: Any) -> dict[str, Any]:
    """Print a result as a line of JSON, and keep it."""
    results.append(values)
    print(json.dumps(values), flush=True)
    return values


def table(results: Sequence[dict[str, Any]], columns: dict[str, str]) -> str:
    """A table in Markdown with a row for each result, by formats of its values; of lists, their medians."""
    plain = [{k: median(v) if isinstance(v, list) else v for k, v in result.items()} for result in results]
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[form.format(**values) for form in columns.values()] for values in plain]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parser(description: str) -> argparse.ArgumentParser:
    """The arguments that every bench takes."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--rounds", type=int, default=3, help="runs of each, in turns")
    made.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch")
    made.add_argument("--no-page", action="store_true", help="print only")
    return made


def page_path(name: str, suffix: str = ".md") -> Path:
    """Where today's page of this name is, or a file that belongs to it."""
    PAGES.mkdir(exist_ok=True)
    return PAGES / f"{datetime.date.today().isoformat()}-{name}{suffix}"


def write_page(name: str, title: str, body: str, results: list[dict[str, Any]], packages: Sequence[str]) -> Path:
    """Write `docs/benchmarks/DATE-NAME.md`: what was run where, the text, and the lines of JSON."""
    path = page_path(name)
    lines = "\n".join(json.dumps(result) for result in results)
    path.write_text(
        f"# {title}, {datetime.date.today().isoformat()}\n\n{_setting(packages)}\n\n{body.strip()}\n\n"
        f"## All figures\n\nSeconds are those of each round.\n\n```json\n{lines}\n```\n",
        encoding="utf-8",
    )
    print(f"wrote {path.relative_to(ROOT)}", file=sys.stderr)
    return path


def _setting(packages: Sequence[str]) -> str:
    from importlib.metadata import version

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    command = " ".join(["python", *[os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]])
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return "\n".join(
        [
            f"- Command: `{command}`",
            f"- Code: after commit {commit.strip()}",
            f"- Hardware: {_processor()}, {torch.get_num_threads()} threads, no GPU",
            f"- Versions: Python {platform.python_version()}, {versions}",
        ]
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            flags = torch.backends.cpu.get_cpu_capability()
            return f"{line.partition(':')[2].strip()} ({flags}), {os.cpu_count()} cores"
    return platform.processor() or platform.machine()
