"""Types and norms of valid embeddings."""

from __future__ import annotations

import numpy as np
import pytest

from priorkit.pipeline.contract.vectors.rules import (
    common_dtype,
    is_embed_dtype,
    judge_norms,
    normalise_rows,
    row_norms,
)


@pytest.mark.parametrize("name", ["float16", "float32", "float64", ">f2", ">f8"])
def test_accepted_types(name: str) -> None:
    assert is_embed_dtype(np.dtype(name))


@pytest.mark.parametrize("name", ["longdouble", "int8", "uint16", "complex64", "bool", "V2", "S4", "O", "f4,f4"])
def test_refused_types(name: str) -> None:
    assert not is_embed_dtype(np.dtype(name))


def test_arrays_of_one_kind_are_read_in_one_type() -> None:
    half, single, double = (np.dtype(name) for name in ("float16", "float32", "float64"))
    assert common_dtype([half, half]) == half
    assert [common_dtype(several) for several in ([half, single], [single], [double], [half, double])] == [single] * 4


def test_norms_are_exact_rounded_or_bad() -> None:
    norms = np.array([1, 0.9981, 1.0019, 0.9979, 1.0021, 0.9901, 1.0099, 0.989, 1.011, 0, np.nan, np.inf], np.float32)
    verdict = judge_norms(norms)
    assert np.flatnonzero(verdict.rounded).tolist() == [3, 4, 5, 6]
    assert np.flatnonzero(verdict.bad).tolist() == [7, 8, 9, 10, 11]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_only_chosen_rows_are_normalised(dtype: type) -> None:
    rows = np.random.default_rng(0).standard_normal((5, 32))
    embeds = (rows / np.linalg.norm(rows, axis=1, keepdims=True) * [[1], [0.994], [1.004], [1], [1]]).astype(dtype)
    before, norms = embeds.copy(), row_norms(embeds.astype(np.float32))
    normalise_rows(embeds, norms, judge_norms(norms).rounded)
    assert np.array_equal(embeds[[0, 3, 4]], before[[0, 3, 4]])
    assert np.abs(row_norms(embeds.astype(np.float32)) - 1).max() < 5e-4


def test_a_square_that_overflows_gives_an_infinite_norm() -> None:
    assert row_norms(np.full((1, 2), 1e30, np.float32)).tolist() == [np.inf]
