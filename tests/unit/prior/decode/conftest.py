"""Tiny decoders, each of which is written when a test first asks for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ....tiny_decoders import write_ip_adapter, write_pipeline


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Returns the folder of a decoder's pipeline."""
    folder, written = tmp_path_factory.mktemp("decoders"), set()

    def path(target: str) -> str:
        if target not in written:
            write_pipeline(target, folder / target)
            written.add(target)
        return str(folder / target)

    return path


@pytest.fixture(scope="session")
def ip_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ip_adapter(tmp_path_factory.mktemp("ip_adapter") / "ip-adapter.safetensors")
