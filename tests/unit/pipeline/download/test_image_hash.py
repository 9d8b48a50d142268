"""Check of a body against a hash: every kind and spelling, and what counts as a mismatch."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from priorkit.pipeline.download.image_hash import check_hash
from priorkit.pipeline.download.outcomes import FetchError

BODY = b"body"
KINDS = ["md5", "sha1", "sha256", "sha512"]


def digest(kind: str, body: bytes = BODY) -> bytes:
    return hashlib.new(kind, body).digest()


@pytest.mark.parametrize("kind", KINDS)
def test_the_hash_of_the_body_passes_in_every_spelling(kind: str) -> None:
    digits = digest(kind).hex()
    for expected in (digits, digits.upper(), f" {digits}\n", digits.encode(), digits.upper().encode(), digest(kind)):
        check_hash(BODY, expected)


@pytest.mark.parametrize("expected", [None, "", b""])
def test_no_hash_is_not_checked(expected: Any) -> None:
    check_hash(BODY, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_another_hash_is_a_mismatch(kind: str) -> None:
    wrong = digest(kind, b"other")
    for expected in (wrong.hex(), wrong):
        with pytest.raises(FetchError) as error:
            check_hash(BODY, expected)
        assert error.value.outcome == "hash_mismatch"
        assert error.value.detail == f"{kind} is {digest(kind).hex()}, the list has {wrong.hex()}"


@pytest.mark.parametrize("expected", ["abc", "g" * 32, "a" * 33, 7, b"short", "  ", "\u0661" * 32])
def test_a_value_that_is_no_hash_is_a_mismatch(expected: Any) -> None:
    with pytest.raises(FetchError, match="which is no MD5, SHA-1, SHA-256 or SHA-512") as error:
        check_hash(BODY, expected)
    assert error.value.outcome == "hash_mismatch"
