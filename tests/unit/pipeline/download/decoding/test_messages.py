"""Messages of decoder processes: they arrive unchanged, and nonsense is refused."""

from __future__ import annotations

import pytest

from priorkit.pipeline.download.decoding.messages import LENGTH, pack, pack_request, unpack, unpack_request
from priorkit.pipeline.download.outcomes import IMAGE_OUTCOMES, ImageError, ResizedImage


@pytest.mark.parametrize("message", [b"", b"[]", b"null", b"[1, 2]", b"[" * 100_000, b'["success", "x"]', b"\xff"])
def test_nonsense_is_no_answer(message: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        unpack(message)


def test_answers_arrive_as_they_were_sent() -> None:
    for exif in (None, "{}", '{"Image Make": "A\\u00e9"}'):
        image = ResizedImage(b"BM\n\0\n", 1, 2, 3, 4, exif)
        assert unpack(pack(image)) == image
    error = unpack(pack(ImageError("decode", "line\nline")))
    assert isinstance(error, ImageError)
    assert str(error) == "decode: line\nline"


@pytest.mark.parametrize("outcome", sorted(IMAGE_OUTCOMES))
def test_every_outcome_of_an_image_arrives(outcome: str) -> None:
    error = unpack(pack(ImageError(outcome)))
    assert isinstance(error, ImageError)
    assert (error.outcome, error.detail, str(error)) == (outcome, "", outcome)


@pytest.mark.parametrize(
    "message",
    [
        b'["dns", "x"]',
        b'["decode", 1]',
        b"[1, 2, 3]\nBM",
        b"[1, 2, 3, 4, 5]\nBM",
        b'{"a": 1}',
        b"[1, 2, 3, 4]\nno image",
        b"[1, 2, 3, 4]",
        b'[1, 2, 3, 4, "{}"]',
        b'[1, 2, 3, 4, "{}", "{}"]\nBM',
    ],
)
def test_answers_of_another_form_are_refused(message: bytes) -> None:
    with pytest.raises(ValueError, match="no answer of a decoding process"):
        unpack(message)


@pytest.mark.parametrize("exif", [r"\ud800", "\u00e9"])
def test_exif_that_cannot_be_stored_is_refused(exif: str) -> None:
    with pytest.raises(ValueError):
        unpack(f'[1, 2, 3, 4, "{exif}"]\nBM'.encode())


@pytest.mark.parametrize("boxes", [[], [[0.1, 0.2, 1 / 3, 1.0], [0.0, 0.5, 1e-9, 1.0]]])
def test_requests_arrive_as_they_were_sent(boxes: list[list[float]]) -> None:
    body = b"\n\0[]\n"
    assert unpack_request(b"".join(pack_request(body, boxes))) == (body, boxes)


def test_sizes_keep_their_order() -> None:
    assert pack(ResizedImage(b"x", 1, 2, 3, 4)) == b"[1, 2, 3, 4]\nx"
    assert LENGTH.pack(258) == b"\0\0\0\0\0\0\1\2"
