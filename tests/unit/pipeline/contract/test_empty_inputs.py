"""The file of outputs for empty inputs: its content, its record, and damage that is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import safetensors.numpy

from priorkit.pipeline.contract.empty_inputs import (
    FILE_NAME,
    EmptyInputs,
    has_empty_inputs,
    read_empty_inputs,
    write_empty_inputs,
)
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import InputError

EMPTY = EmptyInputs(
    np.arange(4, dtype=np.float32) + 5, np.arange(3, dtype=np.float32) - 7, np.arange(6, dtype=np.float32).reshape(2, 3)
)


def content(store: Store) -> bytes:
    with store.open(FILE_NAME) as file:
        return file.read()


@pytest.mark.parametrize("states", [True, False])
def test_what_is_written_is_read_again(store: Store, states: bool) -> None:
    empty = EMPTY if states else dataclasses.replace(EMPTY, token_states=None)
    about = write_empty_inputs(store, empty)
    assert has_empty_inputs(store, about)
    found = read_empty_inputs(store, about)
    assert found is not None
    assert (found.token_states is None) is not states
    for name, values in empty.tensors().items():
        assert np.array_equal(getattr(found, name), values)
        assert getattr(found, name).dtype == np.float32
    assert set(safetensors.numpy.load(content(store))) == set(empty.tensors())


def test_equal_outputs_give_equal_bytes(store: Store) -> None:
    about = write_empty_inputs(store, EMPTY)
    before = content(store)
    assert write_empty_inputs(store, EMPTY) == about
    assert content(store) == before


def test_a_file_without_a_record_is_ignored(store: Store) -> None:
    write_empty_inputs(store, EMPTY)
    for about in ({}, {"empty_inputs": None}, {"empty_inputs": {"bytes": 1}}):
        assert not has_empty_inputs(store, about)
        assert read_empty_inputs(store, about) is None


def test_a_lost_or_changed_file_is_refused_with_the_fix(store: Store) -> None:
    about = write_empty_inputs(store, EMPTY)
    changed = bytearray(content(store))
    changed[-1] ^= 1
    with store.create(FILE_NAME) as file:
        file.write(bytes(changed))
    with pytest.raises(InputError, match=rf"{FILE_NAME} differs from the manifest; remove it, and run `prio"):
        read_empty_inputs(store, about)
    with store.create(FILE_NAME) as file:
        file.write(bytes(changed[:-4]))
    assert not has_empty_inputs(store, about)
    store.remove(FILE_NAME)
    assert not has_empty_inputs(store, about)
    with pytest.raises(InputError, match=rf"{FILE_NAME} is missing; run `priorkit embed` again to restore it"):
        read_empty_inputs(store, about)


@pytest.mark.parametrize(
    ("name", "values", "fault"),
    [
        ("image_embed", None, "image_embed has nothing instead of 1 dimensions of float32"),
        ("text_embed", np.ones(3), r"text_embed has \[3\] float64 instead of 1 dimensions"),
        ("token_states", np.ones(3, np.float32), r"token_states has \[3\] float32 instead of 2 dimensions"),
        ("text_embed", np.empty(0, np.float32), r"text_embed has \[0\] float32"),
        ("image_embed", np.array([1, np.nan], np.float32), "contains NaN or infinity; try embed.dtype=float32"),
    ],
)
def test_unusable_arrays_are_refused(name: str, values: np.ndarray | None, fault: str) -> None:
    tensors = {key: value for key, value in {**EMPTY.tensors(), name: values}.items() if value is not None}
    with pytest.raises(InputError, match=f"^the source: .*{fault}"):
        EmptyInputs.from_tensors(tensors, "the source")
