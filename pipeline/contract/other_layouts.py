"""Error messages for embeddings in a layout that is not read directly, with the command that converts them."""

from __future__ import annotations

import contextlib
import shlex
import zipfile

import pyarrow as pa

from ..errors import InputError
from .arrow.parquet import open_parquet
from .arrow.types import plain_type
from .storage import Store

_SHOWN = 4
"""Maximum number of names listed in a message."""
_LAYOUT = "img_emb/img_emb_0.npy, text_emb/text_emb_0.npy and metadata/metadata_0.parquet"
"""File names of the first shard in the supported layout, for messages."""
_KINDS = ("img_emb", "text_emb", "metadata")
_TENSOR_SUFFIXES = (".pt", ".pth", ".safetensors", ".h5", ".hdf5", ".tfrecord", ".arrow")


def require_known_layout(store: Store) -> None:
    """Raise InputError if a folder without a manifest contains embeddings in an unsupported layout.

    The message describes the layout and how to convert the files. InputError is also raised if `store` is a file.
    """
    if store.is_local and store.fs.isfile(store.root):
        raise InputError(f"{store.url} is a file; name the folder of embeddings that it is in")
    if description := describe_other_layout(store, store.names()):
        raise InputError(f"{store.url} {description}")


def describe_other_layout(store: Store, names: list[str]) -> str:
    """Describe why a folder cannot be read as an embeddings folder, and what the user can do about it.

    Either its files are in an unsupported layout, or the embeddings folder is above or inside the given folder.

    Args:
        store: folder that the user named.
        names: names of the files in the folder.

    Returns:
        String to append to the folder's location in a message; empty if no such problem is recognised.
    """
    folders = sorted({place for name in names if (place := _folder_of_embeddings(name)) is not None})
    if "" in folders:
        kind = next(name.rpartition("_")[0] for name in names if _folder_of_embeddings(name) == "")
        return f"holds the files of {kind} alone; name the folder above it, which has img_emb, text_emb and metadata"
    if len(folders) == 1:
        return f"holds a folder of embeddings, {folders[0]}; name that one"
    if folders:
        return (
            f"holds {len(folders)} folders of embeddings ({_shown(folders)}); name one of them, or join all with "
            f"{_adopt(store)}"
        )
    if archives := [name for name in names if name.endswith(".npz")]:
        arrays = archive_arrays(store, archives[0])
        kind = "DataComp's .npz files" if {"l14_img", "b32_img"} & set(arrays) else ".npz files"
        pair = next((name for name in ("l14", "b32") if {f"{name}_img", f"{name}_txt"} <= set(arrays)), None)
        roles = f"--source {pair}_txt --target {pair}_img " if pair else "--source ARRAY --target ARRAY "
        return (
            f"holds {kind}, which are not read directly ({archives[0]} has {_shown(arrays) or 'no arrays'}); convert "
            f"them with {_adopt(store, roles)}"
        )
    tables = [name for name in names if name.endswith(".parquet")]
    if tables and (columns := vector_columns(store, tables[0])):
        return (
            f"holds embeddings in columns of parquet, which are not read directly ({tables[0]} has {_shown(columns)}); "
            f"convert them with {_adopt(store)}"
        )
    if arrays := [name for name in names if name.endswith(".npy")]:
        return f"holds arrays of other names ({_shown(arrays)}); take them over with {_adopt(store)}"
    if others := [name for name in names if name.endswith(_TENSOR_SUFFIXES)]:
        return f"holds files that are not read as embeddings ({_shown(others)}); save them as {_LAYOUT}"
    return ""


def _adopt(store: Store, roles: str = "") -> str:
    """Return the `priorkit adopt` command that converts a folder, for messages.

    Args:
        roles: options that name the source and the target, followed by a space; empty if their names show their roles.
    """
    return f"`priorkit adopt {shlex.quote(store.url)} NEW_FOLDER {roles}--clip MODEL --clip-pretrained TAG`"


def _folder_of_embeddings(name: str) -> str | None:
    """Return the embeddings folder that contains a file, if it differs from the folder that the user named.

    Args:
        name: path of the file relative to the folder that the user named.

    Returns:
        - `part1` for `part1/img_emb/img_emb_0.npy`: the embeddings folder is `part1`, inside the named folder.
        - Empty string for `img_emb_0.npy`: the embeddings folder is the parent of the named folder.
        - None for `img_emb/img_emb_0.npy`: the named folder is the embeddings folder.
        - None for any file that does not contain embeddings or metadata in a supported layout.
    """
    *above, folder, file = ["", *name.split("/")]
    kind, _, number = file.partition(".")[0].rpartition("_")
    if kind not in _KINDS or not number.isdigit() or not file.endswith((".npy", ".parquet")):
        return None
    if len(above) == 0:
        return ""
    return "/".join(above[1:]) or None if folder == kind else None


def archive_arrays(store: Store, name: str) -> list[str]:
    """Return the sorted names of the arrays in an `.npz` archive. The list is empty if the file cannot be read."""
    with contextlib.suppress(zipfile.BadZipFile, OSError, InputError), store.open(name) as file:
        with zipfile.ZipFile(file) as archive:
            return sorted(member.removesuffix(".npy") for member in archive.namelist())
    return []


def vector_columns(store: Store, name: str) -> list[str]:
    """Return the names of a Parquet file's columns that contain lists of floating-point numbers.

    The list is empty if the file cannot be read.
    """
    with contextlib.suppress(pa.ArrowException, OSError, InputError), store.open(name) as file:
        return [field.name for field in open_parquet(file).schema_arrow if is_vector(field.type)]
    return []


def is_vector(stored: pa.DataType) -> bool:
    """Return True if the values of an Arrow type are lists of floating-point numbers."""
    stored = plain_type(stored)
    is_list = pa.types.is_list(stored) or pa.types.is_large_list(stored) or pa.types.is_fixed_size_list(stored)
    return bool(is_list and pa.types.is_floating(stored.value_type))


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
