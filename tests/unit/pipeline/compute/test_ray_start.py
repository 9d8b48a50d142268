"""Messages about Ray clusters that do not start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from priorkit.pipeline.compute.ray_start import open_cluster
from priorkit.pipeline.errors import PriorkitError


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            Exception("The current node timed out during startup. This could happen because of an overload."),
            r"Ray did not start .*timed out during startup.*run the same command again.*compute\.backend=local",
        ),
        (
            RuntimeError("Failed to start GCS.\n  File x\nlast line"),
            r"cannot start Ray .*Failed to start GCS. last line",
        ),
    ],
)
def test_a_cluster_that_does_not_start_gives_a_message(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    closed = []

    def init(**options: Any) -> NoReturn:
        raise error

    # Ray's own time limit is 30 s, and only an overloaded machine reaches it
    ray = SimpleNamespace(init=init, shutdown=lambda: closed.append(True), _raylet=object())
    with pytest.raises(PriorkitError, match=message) as raised, open_cluster(ray, None):
        pass
    assert len(str(raised.value).splitlines()) == 1
    assert closed == [True]
