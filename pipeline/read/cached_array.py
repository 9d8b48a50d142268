"""Arrays that are computed once and cached in the folder that they describe.

An array is a `.npy` file under `selections/`, named by a fingerprint of all that it depends on. It is memory-mapped:
the split plan of two billion rows is 2 GB. If the folder cannot be written, arrays are computed again in each process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

import numpy as np

from ..contract.storage import Store
from ..contract.vectors.arrays import read_array_start
from ..contract.vectors.spool import RowSpool
from ..errors import InputError

FOLDER = "selections"
"""Folder of cached files. The name is part of the disk format."""
_COPY_BYTES = 1 << 20
"""Bytes of a remote array that are copied at once."""


def cached_array(
    store: Store,
    name: str,
    rows: int | None,
    dtype: np.dtype,
    row_shape: tuple[int, ...],
    make: Callable[[], Iterable[np.ndarray]],
) -> np.ndarray:
    """Return a mapped array `[rows, *row_shape]`: the cached `selections/NAME.npy`, or else a new one, then cached.

    Args:
        rows: required number of rows; None if it is known only after the array is made.
        make: yields the array part by part.
    """
    file_name = f"{FOLDER}/{name}.npy"
    with contextlib.suppress(OSError, EOFError, ValueError):  # absent or damaged: make it again
        cached = _load(store, file_name)
        if cached.dtype == dtype and cached.shape[1:] == row_shape and rows in (None, len(cached)):
            return cached
    with contextlib.closing(RowSpool(dtype, row_shape)) as spool:
        for part in make():
            spool.append(part)
        with contextlib.suppress(OSError), store.create(file_name) as file:  # the folder may be read-only
            spool.save(file)  # type: ignore[arg-type]
        return spool.mapped()


def _load(store: Store, name: str) -> np.ndarray:
    """Map a cached array. A remote one is first copied to a file without a name, which ends with the process."""
    with store.open(name) as file:
        shape, _, dtype = read_array_start(store, name, file)
        if store.is_local:
            return np.load(store.path(name), mmap_mode="r") if np.prod(shape) else np.empty(shape, dtype)
        with contextlib.closing(RowSpool(dtype, shape[1:])) as spool:
            row_bytes = max(1, int(np.prod(shape[1:], dtype=np.int64))) * dtype.itemsize
            while data := file.read(max(1, _COPY_BYTES // row_bytes) * row_bytes):
                spool.append(np.frombuffer(data, dtype).reshape(-1, *shape[1:]))
            if spool.rows != shape[0]:
                raise InputError(f"{store.url}/{name} ends early, in row {spool.rows} of {shape[0]}")
            return spool.mapped()
