"""Upstream programs that several tests run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .img2dataset_server import Img2dataset, serving_img2dataset


@pytest.fixture(scope="session")
def img2dataset() -> Iterator[Img2dataset]:
    with serving_img2dataset() as server:
        yield server
