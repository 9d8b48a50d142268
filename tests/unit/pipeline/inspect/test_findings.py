"""Findings: counted without limit, listed up to a limit."""

from __future__ import annotations

from priorkit.pipeline.inspect.findings import MOST_LISTED, Examples, Inspection


def new_inspection() -> Inspection:
    return Inspection("folder", "embed", 0, 0, 0)


def test_all_findings_are_counted_and_the_first_are_listed() -> None:
    inspection = new_inspection()
    for number in range(MOST_LISTED + 2):
        inspection.add_problem(f"problem {number}")
        inspection.add_note(f"note {number}")
    assert (inspection.problem_count, inspection.note_count) == (1002, 1002)
    assert inspection.problems == [f"problem {number}" for number in range(1000)]
    assert inspection.notes == [f"note {number}" for number in range(1000)]


def test_outcomes_are_added_up() -> None:
    inspection = new_inspection()
    inspection.count({"success": 3, "timeout": 1})
    inspection.count({"success": 2})
    assert inspection.counts == {"success": 5, "timeout": 1}


def test_messages_beyond_the_limit_are_counted_together() -> None:
    inspection = new_inspection()
    inspection.count_errors({f"message {number}": 1 for number in range(MOST_LISTED)})
    inspection.count_errors({"message 7": 4, "one more": 2, "another": 3})
    assert inspection.errors["message 7"] == 5
    assert inspection.errors["other messages"] == 5
    assert len(inspection.errors) == MOST_LISTED + 1


def test_examples_are_asked_for_until_there_are_enough() -> None:
    examples, reports, asked = Examples(most=3), list[str](), list[int]()
    for count in (0, 2, 2, 5):

        def places(count: int = count) -> list[str]:
            asked.append(count)
            return [f"row {count}.{index}" for index in range(count)]

        examples.add(count, places)
    assert asked == [2, 2]
    examples.report(reports.append, "captions are empty")
    assert reports == ["9 captions are empty, such as row 2.0; row 2.1; row 2.0"]


def test_no_rows_are_no_report() -> None:
    reports: list[str] = []
    Examples().report(reports.append, "captions are empty")
    assert reports == []
