"""Outcomes: one list of names, which the code raises and the documentation explains."""

from __future__ import annotations

import ast
import pickle
import re
from pathlib import Path

from priorkit.pipeline.download.outcomes import (
    FETCH_OUTCOMES,
    IMAGE_OUTCOMES,
    SUCCESS,
    TRANSIENT_OUTCOMES,
    FetchError,
    ImageError,
)

ROOT = Path(__file__).resolve().parents[4]


def raised(error: str) -> set[str]:
    """Names of outcomes that the package passes to an error, as literals."""
    names: set[str] = set()
    for path in sorted((ROOT / "pipeline/download").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == error and node.args:
                outcome = node.args[0]
                texts = [outcome.body, outcome.orelse] if isinstance(outcome, ast.IfExp) else [outcome]
                names |= {text.value for text in texts if isinstance(text, ast.Constant)}
    return names


def test_every_outcome_is_raised_and_no_other() -> None:
    assert raised("FetchError") == FETCH_OUTCOMES
    assert raised("ImageError") | {"filtered", "encode"} == IMAGE_OUTCOMES
    assert not FETCH_OUTCOMES & IMAGE_OUTCOMES
    assert SUCCESS not in FETCH_OUTCOMES | IMAGE_OUTCOMES


def test_the_page_explains_every_outcome_and_says_which_are_fetched_again() -> None:
    page = (ROOT / "docs/pages/download.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]*`) \| [^|]* \| (yes|no|) ?\|$", page, re.MULTILINE)
    again = {outcome: cell for cells, cell in rows for outcome in re.findall(r"`(\w+)`", cells)}
    assert set(again) == {SUCCESS} | FETCH_OUTCOMES | IMAGE_OUTCOMES
    assert {outcome for outcome, cell in again.items() if cell == "yes"} == TRANSIENT_OUTCOMES


def test_a_failure_to_fetch_may_be_transient_and_a_bad_image_never() -> None:
    assert TRANSIENT_OUTCOMES < FETCH_OUTCOMES


def test_errors_name_their_outcome_and_detail() -> None:
    assert str(FetchError("dns", "a.test")) == str(ImageError("dns", "a.test")) == "dns: a.test"
    assert str(FetchError("empty_url")) == "empty_url"
    assert ImageError("decode", "x").detail == "x"


def test_an_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(FetchError("http_429", "429", transient=True, retry_after=3.0)))
    assert (error.outcome, error.detail, str(error)) == ("http_429", "429", "http_429: 429")
    assert (error.transient, error.retry_after) == (True, 3.0)
    assert str(pickle.loads(pickle.dumps(FetchError("empty_url")))) == "empty_url"
