"""Token states by row, from a local file and from the temporary copy of a remote one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import InputError
from priorkit.pipeline.read.shards import EmbeddingShard
from priorkit.pipeline.read.token_states import StateRanges

OFFSETS = np.array([0, 2, 2, 5, 6])
STATES = np.arange(12, dtype=np.float16).reshape(6, 2)
FILES = {"offsets": "offsets.npy", "token_states": "states.npy"}


@pytest.fixture(params=["local", "remote"])
def make_shard(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[np.ndarray], EmbeddingShard]:
    def make(offsets: np.ndarray) -> EmbeddingShard:
        store = Store(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")
        for name, values in (("offsets.npy", offsets), ("states.npy", STATES)):
            with store.create(name) as file:
                np.save(file, values)
        return EmbeddingShard(store, len(offsets) - 1, "the test", FILES)

    return make


def test_each_row_has_its_own_states(make_shard: Callable[[np.ndarray], EmbeddingShard]) -> None:
    ranges = StateRanges(make_shard(OFFSETS), 1, 3)
    for row, expected in enumerate([[], [[4, 5], [6, 7]], [[10, 11]]]):
        target = np.zeros((2, 2), np.float16)  # the third state of row 1 has no room
        ranges.fill(row, target)
        padding = [[0, 0]] * (2 - len(expected))
        assert target.tolist() == expected + padding
    ranges.close()


@pytest.mark.parametrize("wrong", [[0, 2, 1, 5, 6], [-1, 2, 2, 5, 6], [0, 2, 2, 5, 7]])
def test_offsets_beyond_the_states_are_refused(
    make_shard: Callable[[np.ndarray], EmbeddingShard], wrong: list[int]
) -> None:
    with pytest.raises(InputError, match=r"offsets\.npy: rows 0 to 3 are not within the 6 token states"):
        StateRanges(make_shard(np.array(wrong)), 0, 4)
