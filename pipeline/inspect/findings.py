"""Findings of an inspection: counts, problems, notes and value distributions, all of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_LISTED = 1000
"""Maximum number of entries in each of `Inspection.problems`, `Inspection.notes` and `Inspection.errors`.

`Inspection.problem_count` and `Inspection.note_count` also include the problems and notes that are not stored. Further
error messages are counted together in one additional entry.
"""

Report = Callable[[str], None]
"""Callback that receives a finding as a string: `Inspection.add_problem` or `Inspection.add_note`."""


@dataclass
class Inspection:
    """Findings about a folder. `priorkit inspect --json` prints all fields, converted with `dataclasses.asdict`."""

    folder: str
    stage: str
    """Name of the stage that wrote the folder, such as `embed`. For a folder without a manifest, a description such as
    `images without a manifest`."""
    shards: int
    rows: int
    bytes: int
    """Total size in bytes of the files listed in the manifest. Without a manifest, total size of all files."""
    counts: dict[str, int] = field(default_factory=dict)
    """Number of rows with each outcome, such as `success`, keyed by outcome."""
    errors: dict[str, int] = field(default_factory=dict)
    """Number of failed rows for each error message. After 1,000 distinct messages, new ones are counted together as
    `other messages`."""
    about: dict[str, Any] = field(default_factory=dict)
    """Information about the content, taken from the manifest, such as the identity of the CLIP model."""
    settings: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """First 1,000 problems. Each message names the affected shard and row, if any. Empty if no problems were found."""
    problem_count: int = 0
    notes: list[str] = field(default_factory=list)
    """First 1,000 observations that are not problems."""
    note_count: int = 0
    looked_at: dict[str, int] = field(default_factory=dict)
    """Number of rows, files or images that were checked, keyed by a description of the check."""
    distributions: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Value distributions (such as caption lengths) in the format of `Distribution.to_json`, keyed by name."""

    def add_problem(self, problem: str) -> None:
        """Increment the number of problems, and store the problem if it is among the first 1,000."""
        self.problem_count += 1
        if len(self.problems) < MOST_LISTED:
            self.problems.append(problem)

    def add_note(self, note: str) -> None:
        """Increment the number of notes, and store the note if it is among the first 1,000."""
        self.note_count += 1
        if len(self.notes) < MOST_LISTED:
            self.notes.append(note)

    def count(self, outcomes: Mapping[str, int]) -> None:
        """Add row counts, keyed by outcome (such as `success`), to the totals in `self.counts`."""
        for outcome, number in outcomes.items():
            self.counts[outcome] = self.counts.get(outcome, 0) + number

    def count_errors(self, messages: Mapping[str, int]) -> None:
        """Add counts of failed rows, keyed by error message, to the totals in `self.errors`.

        Once `self.errors` contains 1,000 messages, rows with new messages are counted as `other messages`.
        """
        for message, number in messages.items():
            known = message in self.errors or len(self.errors) < MOST_LISTED
            name = message if known else "other messages"
            self.errors[name] = self.errors.get(name, 0) + number


class Examples:
    """Number of rows with a given property, such as an empty caption, and the locations of a few of these rows.

    Call `add` to count rows, and then `report` to report them together as a single finding.

    Args:
        most: maximum number of example rows that the finding names.
    """

    def __init__(self, most: int = 3) -> None:
        self._most = most
        self._places: list[str] = []
        self.count = 0

    def add(self, count: int, places: Callable[[], list[str]]) -> None:
        """Count more rows, and store some of them as examples.

        Args:
            count: number of rows with the property.
            places: function that returns the locations of some of these rows, such as `shard 00002, row 17`. It is
                called only if more examples are needed.
        """
        self.count += count
        if count and len(self._places) < self._most:
            self._places += places()[: self._most - len(self._places)]

    def report(self, report: Report, description: str) -> None:
        """Report one finding, for example `12 captions are empty, such as shard 00002, row 17`.

        Do nothing if no rows were counted.

        Args:
            report: callback that receives the finding.
            description: text between the number of rows and the examples, such as `captions are empty`.
        """
        if self.count:
            report(f"{self.count:,} {description}, such as {'; '.join(self._places)}")
