"""Errors made from those of Ray Train; training on Ray is in the integration tests."""

from __future__ import annotations

import pytest

from priorkit.prior.train.on_ray import explain_end


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Ray Train ended before the training did: no reason is given"),
        ("Traceback:\n File x\nValueError: wrong\n", "Ray Train ended before the training did: ValueError: wrong"),
        ("failed: (0, 'a\\n  ^^^\\nOSError: full\\n", "Ray Train ended before the training did: OSError: full"),
        ("ValueError: ProcessGroupNCCL is only supported with GPUs, no GPUs found!", "torch sees none there; install"),
    ],
)
def test_an_error_of_ray_train_is_shortened_to_its_reason(text: str, message: str) -> None:
    assert message in str(explain_end(text))
