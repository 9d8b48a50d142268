"""Findings of an inspection: counts, problems, notes and distributions, all of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_LISTED = 1000
"""Maximum number of problems stored, and likewise of notes and of distinct error messages. The counts include all."""

Report = Callable[[str], None]
"""Callback for a finding: `Inspection.add_problem` or `Inspection.add_note`."""


@dataclass
class Inspection:
    """Findings about a folder. `priorkit inspect --json` prints all fields, converted with `dataclasses.asdict`."""

    folder: str
    stage: str
    """Name of the stage that wrote the folder. In a folder without a manifest, a description of the content."""
    shards: int
    rows: int
    bytes: int
    """Total size in bytes of the files in the manifest. In a folder without a manifest, total size of all files."""
    counts: dict[str, int] = field(default_factory=dict)
    """Number of rows for each outcome."""
    errors: dict[str, int] = field(default_factory=dict)
    """Number of failed rows for each message. Messages beyond the first 1,000 are counted as `other messages`."""
    about: dict[str, Any] = field(default_factory=dict)
    """Facts that the manifest records about the content, such as the identity of the CLIP model."""
    settings: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """First 1,000 problems, each with its shard and row if it has any; empty for a sound folder."""
    problem_count: int = 0
    notes: list[str] = field(default_factory=list)
    """First 1,000 observations that are not problems."""
    note_count: int = 0
    looked_at: dict[str, int] = field(default_factory=dict)
    """Number of rows, files or images that each check covered."""
    distributions: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Distributions by name, in the format of `Distribution.to_json`."""

    def add_problem(self, problem: str) -> None:
        """Count a problem, and store it if it is among the first 1,000."""
        self.problem_count += 1
        if len(self.problems) < MOST_LISTED:
            self.problems.append(problem)

    def add_note(self, note: str) -> None:
        """Count a note, and store it if it is among the first 1,000."""
        self.note_count += 1
        if len(self.notes) < MOST_LISTED:
            self.notes.append(note)

    def count(self, outcomes: Mapping[str, int]) -> None:
        """Add row counts by outcome."""
        for outcome, number in outcomes.items():
            self.counts[outcome] = self.counts.get(outcome, 0) + number

    def count_errors(self, messages: Mapping[str, int]) -> None:
        """Add counts of failed rows by error message."""
        for message, number in messages.items():
            known = message in self.errors or len(self.errors) < MOST_LISTED
            name = message if known else "other messages"
            self.errors[name] = self.errors.get(name, 0) + number


class Examples:
    """Counter for rows with some property, such as an empty caption. It stores a few examples for a single note.

    Args:
        most: maximum number of examples.
    """

    def __init__(self, most: int = 3) -> None:
        self._most = most
        self._places: list[str] = []
        self.count = 0

    def add(self, count: int, places: Callable[[], list[str]]) -> None:
        """Count rows.

        Args:
            count: number of rows with the property.
            places: function that returns descriptions of some of these rows. It is called only if more examples are
                needed.
        """
        self.count += count
        if count and len(self._places) < self._most:
            self._places += places()[: self._most - len(self._places)]

    def report(self, report: Report, description: str) -> None:
        """Report the number of rows, a description of their property, and the examples. Do nothing for 0 rows."""
        if self.count:
            report(f"{self.count:,} {description}, such as {'; '.join(self._places)}")
