"""Memory budget: when another row may start."""

from __future__ import annotations

import pytest

from priorkit.pipeline.download.fetching.buffer import Buffer, Claim

BODY, IMAGE = 1000, 100


def buffer_of(limit: int, max_rows: int = 1000) -> Buffer:
    return Buffer(limit, max_rows, lambda: None)


def counts(buffer: Buffer) -> tuple[int, int, int, int]:
    return buffer.bytes_used, buffer.body_bytes, buffer.unfinished, buffer.expected_bodies


def test_bodies_that_wait_for_a_decoder_stop_the_fetch() -> None:
    buffer = buffer_of(80 * BODY)
    claims = []
    while buffer.has_room():
        claims.append(Claim(buffer))
        claims[-1].arrived(BODY)
    assert len(claims) == 10
    claims[3].finished(IMAGE)
    assert buffer.has_room()
    assert counts(buffer) == (9 * BODY + IMAGE, 9 * BODY, 9, 0)
    for claim in claims:
        claim.release()
    assert counts(buffer) == (0, 0, 0, 0)


def test_a_claim_counts_an_expected_body_then_the_body_then_the_image() -> None:
    buffer = buffer_of(10**9)
    claim = Claim(buffer)
    assert counts(buffer) == (0, 0, 1, 1)
    claim.arrived(BODY)
    assert counts(buffer) == (BODY, BODY, 1, 0)
    claim.finished(IMAGE)
    assert counts(buffer) == (IMAGE, 0, 0, 0)
    claim.release()
    assert counts(buffer) == (0, 0, 0, 0)


def test_a_row_may_end_without_a_body_or_without_an_image() -> None:
    buffer = buffer_of(10**9)
    failed, cancelled, fetched = Claim(buffer), Claim(buffer), Claim(buffer)
    failed.finished(0)
    failed.release()
    assert counts(buffer) == (0, 0, 2, 2)
    cancelled.release()
    fetched.arrived(BODY)
    fetched.release()
    assert counts(buffer) == (0, 0, 0, 0)


def test_unfinished_rows_are_limited() -> None:
    buffer = buffer_of(10**9, max_rows=2)
    claims = [Claim(buffer), Claim(buffer)]
    assert not buffer.has_room()
    claims[0].finished(IMAGE)
    assert buffer.has_room()


def test_expected_bodies_count_with_the_mean_of_recent_ones() -> None:
    buffer = buffer_of(10 * BODY)
    buffer.mean_bytes = BODY
    claims = [Claim(buffer) for _ in range(9)]
    assert buffer.has_room()
    claims.append(Claim(buffer))
    assert not buffer.has_room()
    claims[0].finished(0)
    assert buffer.has_room()


def test_the_mean_moves_by_one_part_in_64() -> None:
    buffer = buffer_of(10**9)
    Claim(buffer).arrived(100_000 + 64)
    assert buffer.mean_bytes == pytest.approx(100_001)


def test_an_empty_buffer_always_has_room() -> None:
    assert buffer_of(1, max_rows=0).has_room()


def test_every_change_is_reported() -> None:
    changes: list[int] = []
    buffer = Buffer(10**9, 10, lambda: changes.append(buffer.bytes_used))
    claim = Claim(buffer)
    claim.arrived(BODY)
    claim.finished(IMAGE)
    claim.release()
    assert changes == [BODY, IMAGE, 0]
