"""Statistics of a download as tables."""

from __future__ import annotations

from typing import Any

import pytest

from priorkit.pipeline.commands.download import _show_statistics


def statistics(**changed: Any) -> dict[str, Any]:
    notes = {"rows": None, "renamed_columns": {}, "quoted_fields": 0, "late_keys": {}, "guessed_columns": {}}
    plain = {
        "errors": {},
        "hosts": {},
        "duplicates_exact": True,
        "duplicate_urls": 12,
        "not_utf8": 3,
        "list": notes | changed.pop("notes", {}),
    }
    return plain | changed


def lines(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    output = capsys.readouterr().out
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if "│" in line]


def test_plain_statistics_are_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    _show_statistics(statistics())
    assert lines(capsys) == [["rows whose URL came before", "12"], ["rows with text that is not UTF-8", "3"]]


def test_retries_failures_and_hosts_have_tables(capsys: pytest.CaptureFixture[str]) -> None:
    hosts = {"example.com": {"timeout": 1000, "http_404": 234}}
    retried = {"rows": 9, "success": 4}
    _show_statistics(statistics(retried=retried, errors={"timeout": 1000}, hosts=hosts, duplicates_exact=False))
    rows = lines(capsys)
    for row in (
        ["rows", "9"],
        ["success", "4"],
        ["timeout", "1,000"],
        ["example.com", "1,234", "1,000 timeout, 234 http_404"],
        ["rows whose URL came before, about", "12"],
    ):
        assert row in rows


def test_notes_about_the_list_are_rows(capsys: pytest.CaptureFixture[str]) -> None:
    notes = {
        "rows": 5000,
        "renamed_columns": {"key": "source_key"},
        "quoted_fields": 7,
        "late_keys": {"size": 2},
        "guessed_columns": {"url_column": "URL"},
    }
    _show_statistics(statistics(notes=notes))
    rows = lines(capsys)
    assert rows[0] == ["rows by an independent count", "5,000"]
    assert ["column used as url", "URL"] in rows
    assert ["column key, whose name is ours, is kept as", "source_key"] in rows
    assert ["rows whose key size is left out, since it begins after 10,000 rows", "2"] in rows
