"""Settings of workers and devices."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from priorkit.pipeline.compute.settings import ComputeSettings, DeviceSettings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": 2}, "need compute.backend=ray"),
        ({"address": "auto"}, "need compute.backend=ray"),
        ({"backend": "ray", "workers": 2, "min_workers": 3}, "compute.min_workers=3 is more than compute.workers=2"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ComputeSettings(**given)


def test_settings_at_the_limits_are_accepted() -> None:
    assert ComputeSettings(workers=1).backend == "local"
    assert ComputeSettings(backend="ray", workers=2, min_workers=2, address="auto").min_workers == 2


def test_the_device_is_part_of_the_identity_and_the_threads_are_not() -> None:
    assert DeviceSettings(device="cpu", threads=3).identity() == {"device": "cpu"}
