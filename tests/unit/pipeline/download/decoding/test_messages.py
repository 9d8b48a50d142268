"""Messages of decoder processes: they arrive unchanged, and nonsense is refused."""

from __future__ import annotations

import pytest

from priorkit.pipeline.download.decoding.messages import LENGTH, pack, unpack
from priorkit.pipeline.download.outcomes import IMAGE_OUTCOMES, ImageError, ResizedImage


@pytest.mark.parametrize("message", [b"", b"[]", b"null", b"[1, 2]", b"[" * 100_000, b'["success", "x"]', b"\xff"])
def test_nonsense_is_no_answer(message: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        unpack(message)


def test_answers_arrive_as_they_were_sent() -> None:
    image = ResizedImage(b"\n\0\n", 1, 2, 3, 4)
    assert unpack(pack(image)) == image
    error = unpack(pack(ImageError("decode", "line\nline")))
    assert isinstance(error, ImageError)
    assert str(error) == "decode: line\nline"


@pytest.mark.parametrize("outcome", sorted(IMAGE_OUTCOMES))
def test_every_outcome_of_an_image_arrives(outcome: str) -> None:
    error = unpack(pack(ImageError(outcome)))
    assert isinstance(error, ImageError)
    assert (error.outcome, error.detail, str(error)) == (outcome, "", outcome)


@pytest.mark.parametrize("message", [b'["dns", "x"]', b'["decode", 1]', b"[1, 2, 3]", b"[1, 2, 3, 4, 5]", b'{"a": 1}'])
def test_answers_of_another_form_are_refused(message: bytes) -> None:
    with pytest.raises(ValueError, match="no answer of a decoding process"):
        unpack(message)


def test_sizes_keep_their_order() -> None:
    assert pack(ResizedImage(b"x", 1, 2, 3, 4)) == b"[1, 2, 3, 4]\nx"
    assert LENGTH.pack(258) == b"\0\0\0\0\0\0\1\2"
