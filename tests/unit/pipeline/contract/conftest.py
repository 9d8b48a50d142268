"""Folders on an object store whose requests are counted."""

from __future__ import annotations

from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Requests for listings and for single files that a `memory://` store has answered, as names of methods."""
    answered: list[str] = []
    for method in ("info", "ls"):
        original = getattr(MemoryFileSystem, method)

        def counted(
            self: MemoryFileSystem, *args: Any, _name: str = method, _original: Any = original, **options: Any
        ) -> Any:
            answered.append(_name)
            return _original(self, *args, **options)

        monkeypatch.setattr(MemoryFileSystem, method, counted)
    return answered
