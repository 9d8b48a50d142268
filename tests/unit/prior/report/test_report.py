"""The page of a report: where it is written, and what the caller is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from priorkit.pipeline.errors import InputError
from priorkit.prior.report.report import _target, write_report


def test_a_page_is_written_with_all_sections(given: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    written = write_report(str(given), images=str(tmp_path / "none"), output=str(target))
    page = target.read_bytes()
    assert (written.path, written.bytes) == (str(target), len(page))
    assert page.count(b"<section>") == 8
    assert f"<h1>Report: {given}</h1>".encode() in page
    assert written.missing
    assert all(sentence.split("'")[0].split("&")[0].encode() in page for sentence in written.missing)


def test_the_page_is_beside_the_evaluation_unless_it_is_named(tmp_path: Path) -> None:
    assert _target(None, str(tmp_path / "evaluation")) == f"{tmp_path}/evaluation.html"
    assert _target("a.html", "memory://evaluation") == "a.html"
    with pytest.raises(InputError, match="is not on this machine; name a file to write with --output"):
        _target(None, "memory://evaluation")


def test_a_page_among_recorded_files_is_refused(given: Path) -> None:
    for folder in (given, given.parent / "embeddings", given.parent / "images"):
        with pytest.raises(InputError, match="whose files are recorded"):
            write_report(str(given), images=str(given.parent / "images"), output=str(folder / "page.html"))
