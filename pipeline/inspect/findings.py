"""Findings of an inspection: counts, faults by shard and row, and distributions, all of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_LISTED = 1000
"""Largest number of problems, of notes, and of distinct messages that are listed; all are counted."""

Report = Callable[[str], None]
"""Callback for one finding: `Inspection.add_problem` or `Inspection.add_note`."""


@dataclass
class Inspection:
    """Findings about a folder. `priorkit inspect --json` prints `dataclasses.asdict` of it."""

    folder: str
    stage: str
    """Stage that wrote the folder; without a manifest, a description of its content."""
    shards: int
    rows: int
    bytes: int
    """Bytes of the recorded files; without a manifest, of all files."""
    counts: dict[str, int] = field(default_factory=dict)
    """Number of rows by outcome."""
    errors: dict[str, int] = field(default_factory=dict)
    """Number of failed rows by message; those beyond 1,000 messages are counted as `other messages`."""
    about: dict[str, Any] = field(default_factory=dict)
    """Values that the manifest states about the result, such as the identity of the CLIP."""
    settings: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """First 1,000 faults, by shard and row; empty for a sound folder."""
    problem_count: int = 0
    notes: list[str] = field(default_factory=list)
    """First 1,000 observations that are not faults."""
    note_count: int = 0
    looked_at: dict[str, int] = field(default_factory=dict)
    """Number of rows, files or images that each check read."""
    distributions: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Distributions by name, as `Distribution.to_json` returns them."""

    def add_problem(self, problem: str) -> None:
        """Count a fault, and list it if it is among the first."""
        self.problem_count += 1
        if len(self.problems) < MOST_LISTED:
            self.problems.append(problem)

    def add_note(self, note: str) -> None:
        """Count an observation, and list it if it is among the first."""
        self.note_count += 1
        if len(self.notes) < MOST_LISTED:
            self.notes.append(note)

    def count(self, outcomes: Mapping[str, int]) -> None:
        """Add numbers of rows by outcome."""
        for outcome, number in outcomes.items():
            self.counts[outcome] = self.counts.get(outcome, 0) + number

    def count_errors(self, messages: Mapping[str, int]) -> None:
        """Add numbers of failed rows by message."""
        for message, number in messages.items():
            known = message in self.errors or len(self.errors) < MOST_LISTED
            name = message if known else "other messages"
            self.errors[name] = self.errors.get(name, 0) + number


class Examples:
    """Count of rows with a property, and the places of the first ones, for a single note at the end."""

    def __init__(self, most: int = 3) -> None:
        self._most = most
        self._places: list[str] = []
        self.count = 0

    def add(self, count: int, places: Callable[[], list[str]]) -> None:
        """Count rows. `places` returns places of some of them; it is called only while examples are missing."""
        self.count += count
        if count and len(self._places) < self._most:
            self._places += places()[: self._most - len(self._places)]

    def report(self, report: Report, description: str) -> None:
        """Report the rows, if there are any, as their number followed by a description."""
        if self.count:
            report(f"{self.count:,} {description}, such as {'; '.join(self._places)}")
