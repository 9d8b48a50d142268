"""What an inspection has found: counts, faults by shard and row, and distributions, all of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_KEPT = 1000
"""Problems, notes and distinct messages that are kept; all are counted."""

Tell = Callable[[str], None]
"""Takes one finding: `Inspection.problem` or `Inspection.note`."""


@dataclass
class Inspection:
    """What was found in a folder. `dataclasses.asdict` of it is what `--json` prints."""

    folder: str
    stage: str
    """The stage that wrote the folder, or what it holds where there is no manifest to say so."""
    shards: int
    rows: int
    bytes: int
    """Of the recorded files; of all files where there is no manifest."""
    counts: dict[str, int] = field(default_factory=dict)
    """How many rows met which outcome."""
    errors: dict[str, int] = field(default_factory=dict)
    """How many rows failed with which message; beyond 1,000 messages, under `other messages`."""
    about: dict[str, Any] = field(default_factory=dict)
    """What was found out while working, such as the identity of the CLIP."""
    settings: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """What is damaged, by shard and row, the first 1,000; empty for a sound folder."""
    problem_count: int = 0
    notes: list[str] = field(default_factory=list)
    """What is worth knowing and no damage, the first 1,000."""
    note_count: int = 0
    looked_at: dict[str, int] = field(default_factory=dict)
    """How many rows, files or images each check looked at."""
    distributions: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name, as `Distribution.to_json` has it."""

    def problem(self, what: str) -> None:
        """Count damage, and keep the first of it."""
        self.problem_count += 1
        if len(self.problems) < MOST_KEPT:
            self.problems.append(what)

    def note(self, what: str) -> None:
        """Count an observation, and keep the first of them."""
        self.note_count += 1
        if len(self.notes) < MOST_KEPT:
            self.notes.append(what)

    def count(self, outcomes: Mapping[str, int]) -> None:
        """Add to the outcomes."""
        for outcome, number in outcomes.items():
            self.counts[outcome] = self.counts.get(outcome, 0) + number

    def count_errors(self, messages: Mapping[str, int]) -> None:
        """Add to the messages of failures."""
        for message, number in messages.items():
            known = message in self.errors or len(self.errors) < MOST_KEPT
            name = message if known else "other messages"
            self.errors[name] = self.errors.get(name, 0) + number


class Examples:
    """Counts what happens to rows, and names the first of them, for one note in the end."""

    def __init__(self, most: int = 3) -> None:
        self._most = most
        self._places: list[str] = []
        self.count = 0

    def add(self, count: int, places: Callable[[], list[str]]) -> None:
        """Count rows; `places` is called while examples are wanted, and names some of them."""
        self.count += count
        if count and len(self._places) < self._most:
            self._places += places()[: self._most - len(self._places)]

    def tell(self, tell: Tell, what: str) -> None:
        """Tell of the rows, if there were any: `what` says what they are, with the number before it."""
        if self.count:
            tell(f"{self.count:,} {what}, such as {'; '.join(self._places)}")
