"""Safe reading of `.pth` files, without running any code they contain.

torch's safe reader loads only tensors and plain values. Checkpoints of DALLE2-pytorch's trainer also contain
Python objects for the DALLE2-pytorch version, the optimiser and the learning-rate warmup. Inert stand-ins replace these
objects. A file that refers to any other object is rejected.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from typing import Any, BinaryIO

import torch
from fsspec.implementations.local import LocalFileSystem

from ...pipeline.contract.hashing import is_lfs_pointer
from ...pipeline.contract.storage import open_location
from ...pipeline.errors import InputError

_INERT = (
    "builtins.dict",  # default factory of the optimiser's defaultdict
    "packaging._structures.InfinityType",
    "packaging._structures.NegativeInfinityType",
    "packaging.version.Version",
    "packaging.version._Version",
    "pytorch_warmup.base.LinearWarmup",
    "torch.optim.adam.Adam",
    "torch.optim.adamw.AdamW",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
)
"""Qualified names of the classes and functions that `StandIn` replaces when a checkpoint is read.

A checkpoint may refer to them, but none of them is imported or called.
"""


_UNKNOWN_NAME = re.compile(r"GLOBAL (\S+) (?:was not an allowed global|whose module)")
"""Pattern for the error that torch raises if a file refers to a class or function that is not allowed.

The first group captures the qualified name of the class or function.
"""


class StandIn:
    """Harmless replacement for a Python object that is stored in a checkpoint.

    It only stores the object's constructor arguments or its pickled state, and runs none of the object's code.
    """

    def __new__(cls, *values: Any) -> StandIn:
        """Create a stand-in that stores the given constructor arguments.

        pickle calls `__new__` but not `__init__` when it creates an object.
        """
        made = super().__new__(cls)
        made.values = values
        return made

    values: Any
    """Constructor arguments of the replaced object, or its pickled state if it has one."""

    def __setstate__(self, state: Any) -> None:
        """Replace the stored constructor arguments with the object's pickled state."""
        self.values = state


def find_pth(path: str) -> tuple[Any, str]:
    """Return the file system that contains a `.pth` or `.pt` file, and the file's path on that file system.

    Raises:
        InputError: the file does not exist.
    """
    fs, location = open_location(path)
    if not fs.isfile(location):
        raise InputError(f"{path}: {'a folder, not a checkpoint' if fs.isdir(location) else 'no such file'}")
    return fs, location


def read_pth(path: str) -> dict[str, Any]:
    """Read the dictionary stored in a `.pth` or `.pt` file, local or remote.

    Raises:
        InputError: the file is missing or damaged, is a Git LFS pointer, does not contain a dictionary, or refers to a
            class or function that is not allowed.
    """
    fs, location = find_pth(path)
    with fs.open(location, "rb") as file:
        if is_lfs_pointer(file):
            raise InputError(
                f"{path}: cannot be read as a checkpoint; is the file whole? (a pointer of Git LFS, not the file; run "
                "`git lfs pull` in its repository)"
            )
    if isinstance(fs, LocalFileSystem):
        # memory-map the file if its format allows it, because most of the data is not needed
        content = _load(location, path, mmap=zipfile.is_zipfile(location))
    else:
        with fs.open(location, "rb") as file:
            content = _load(file, path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not the dictionary of a checkpoint")
    return content


def version_text(value: Any, path: str) -> str | None:
    """Convert the DALLE2-pytorch version stored in a checkpoint to a string, such as `1.15.6`.

    Return None if `value` is None.

    Args:
        value: the stored version: a string, None, or the stand-in for a `packaging.version.Version` object, pickled by
            any release of `packaging`.
        path: name of the file, for error messages.

    Raises:
        InputError: the value is none of these.
    """
    if value is None or isinstance(value, str):
        return value
    parts = value.values if isinstance(value, StandIn) else None
    release = None
    if isinstance(parts, dict) and isinstance(parts.get("_version"), StandIn):
        parts = parts["_version"].values  # packaging releases before 26
    if isinstance(parts, tuple) and len(parts) > 1:  # (epoch, release, ...), or (None, slots) in packaging 26
        release = parts[1].get("_release") if isinstance(parts[1], dict) else parts[1]
    if isinstance(release, tuple) and release:
        return ".".join(map(str, release))
    raise InputError(f"{path}: its version is of an unknown kind ({str(parts or value)[:100]}); give function_version=")


def _load(file: str | BinaryIO, path: str, mmap: bool = False) -> Any:
    """Load a checkpoint onto the CPU with torch's safe reader, which runs no code from the file.

    `StandIn` takes the place of every class and function listed in `_INERT`.

    Args:
        file: local path, or open binary file.
        path: name of the file, for error messages.
        mmap: True to memory-map the file, which must then be a local path.

    Raises:
        InputError: the file is damaged, or refers to a class or function that is not allowed.
    """
    harmless: list[Any] = [(StandIn, name) for name in _INERT]
    harmless.append((_plain_dict, "collections.defaultdict"))
    try:
        with torch.serialization.safe_globals(harmless):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise InputError(_explain(str(error), path)) from None
    except Exception as error:  # on damaged files, torch's reader can raise any exception
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise InputError(f"{path}: cannot be read as a checkpoint; is the file whole? ({reason})") from None


def _plain_dict(*_: Any) -> dict[Any, Any]:
    """Return an empty dict, which takes the place of a `defaultdict` in a checkpoint. The arguments are ignored.

    torch's safe reader cannot add items to a `defaultdict`.
    """
    return {}


def _explain(message: str, path: str) -> str:
    """Return the message to show the user if torch's safe reader rejects a file.

    Args:
        message: text of the error that torch raised.
        path: name of the file.
    """
    if found := _UNKNOWN_NAME.search(message):
        return (
            f"{path}: holds {found[1]}, which is not among what a checkpoint may hold; nothing of it was run. "
            "Only tensors and plain values are read: save the state_dict alone, where you trust the file"
        )
    cause = message.partition("\n\n")[2] or message  # omit torch's advice to load the file unsafely
    return f"{path}: cannot be read as a checkpoint; is the file whole? ({cause.strip().splitlines()[0]})"
