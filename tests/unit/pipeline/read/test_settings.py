"""Settings of the reader: fractions that leave rows to train on."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from priorkit.pipeline.read.settings import ReadSettings


def test_some_rows_must_train() -> None:
    assert ReadSettings(validation_fraction=0.5, test_fraction=0.49).splits() == {
        "validation_fraction": 0.5,
        "test_fraction": 0.49,
    }
    with pytest.raises(ValidationError, match="must be below 1, or nothing is left to train on"):
        ReadSettings(validation_fraction=0.5, test_fraction=0.5)
