"""What rows are compared with; their order, gallery and blocks are tested on whole evaluations."""

from __future__ import annotations

import numpy as np

from priorkit.prior.evaluate.rows import _next_different


def test_the_unrelated_caption_is_of_a_row_that_holds_something_else() -> None:
    ids = np.array([7, 7, 2, 9, 9, 9], np.uint64)
    assert _next_different(ids).tolist() == [2, 2, 3, 0, 0, 0]
    assert _next_different(ids[:2]).tolist() == [0, 1]
    assert _next_different(np.array([3, 1, 2], np.uint64)).tolist() == [1, 2, 0]
