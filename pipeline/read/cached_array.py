"""Arrays that are computed once and cached in the embeddings folder that they describe.

Each array is a `.npy` file under `selections/`. Its name contains a fingerprint of the data and settings that the array
depends on. Arrays are memory-mapped, because they can be large: an array that stores the split of each row takes 2 GB
for two billion rows. If the folder is not writable, each process computes the arrays again.
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
"""Name of the subfolder of an embeddings folder that contains cached arrays. The name is part of the disk format."""
_COPY_BYTES = 1 << 20
"""Number of bytes that are copied from a remote array at a time."""


def cached_array(
    store: Store,
    name: str,
    rows: int | None,
    dtype: np.dtype,
    row_shape: tuple[int, ...],
    make: Callable[[], Iterable[np.ndarray]],
) -> np.ndarray:
    """Return the array stored in the cache file `selections/NAME.npy`, memory-mapped.

    If the file is missing or damaged, or has an unexpected dtype or shape, compute the array and write it to the file.
    If the file cannot be written, return the array memory-mapped from a temporary file.

    Args:
        store: embeddings folder that contains the cache file.
        name: name of the cache file, without the extension.
        rows: expected number of rows; None if the number is unknown until the array is computed.
        dtype: expected dtype.
        row_shape: expected shape of each row; `()` if each row is a single value.
        make: function that computes the array and yields it in parts, in row order.

    Returns:
        Array of shape `[rows, *row_shape]`.
    """
    file_name = f"{FOLDER}/{name}.npy"
    with contextlib.suppress(OSError, EOFError, ValueError):  # missing or damaged: compute it again
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
    """Memory-map a cached array. A remote array is first copied to an unnamed temporary file.

    Raises:
        InputError: a remote file is truncated.
    """
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
