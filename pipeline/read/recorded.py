"""Function that opens an embeddings folder with a manifest, and compares its files with the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..contract.embedding_files import IN_PLACE_FILES, recorded_files
from ..contract.manifest import Manifest, ShardRecord
from ..contract.storage import TEMPORARY_SUFFIX, Store
from ..contract.vectors.arrays import read_header
from ..contract.vectors.rules import WORDS
from ..errors import InputError
from .shards import EmbeddingShard, FolderShards

_DATA_FOLDERS = ("img_emb", "text_emb", "metadata", "token_states")
"""Data folders: subfolders in which every file must belong to a shard in the manifest."""
_MAX_WIDTH = 1 << 20
"""Maximum plausible width of an embedding or token state. A larger value means that the manifest is damaged."""
_HEADER_THREADS = 16
"""Number of threads that read the headers of files adopted in place."""


def open_recorded(store: Store, manifest: Manifest) -> FolderShards:
    """Open the shards listed in a manifest that `embed` or `adopt` wrote.

    The header of an embedding array is read only if the file size does not match the number of rows and the embedding
    size in the manifest, or if the file was adopted in place.

    Raises:
        InputError: the folder is incomplete, a file is missing or its size differs from the manifest, or the manifest
            does not describe the embeddings.
    """
    clip: Any = manifest.about.get("clip", {})
    dims = _recorded_sizes(store, manifest)
    in_place = IN_PLACE_FILES in manifest.about
    sizes = {name: size for folder in _DATA_FOLDERS for name, size in store.sizes(folder).items()}
    recorded_folders = {name.rpartition("/")[0] for record in manifest.shards.values() for name in record.files}
    for folder in sorted(recorded_folders - set(_DATA_FOLDERS)):
        sizes.update(store.sizes(folder))
    records = [manifest.shards[name] for name in sorted(manifest.shards)]
    if in_place:
        with ThreadPoolExecutor(_HEADER_THREADS) as pool:
            shards = list(pool.map(lambda record: _in_place(store, manifest, record, sizes, dims), records))
    else:
        shards = [EmbeddingShard.from_record(store, record, sizes, dims, manifest.stage) for record in records]
    _refuse_unfinished(store, manifest, {} if in_place else sizes)
    has_states = bool(shards) and shards[0].has("token_states")
    return FolderShards(
        shards=shards,
        embed_dim=dims["img_emb"],
        text_dim=dims["text_emb"],
        token_width=_recorded_width(store, manifest, clip, "token_width") if has_states else None,
        about=manifest.about,
        recorded_fingerprint=manifest.content_fingerprint(),
    )


def _in_place(
    store: Store, manifest: Manifest, record: ShardRecord, sizes: Mapping[str, int], dims: Mapping[str, int]
) -> EmbeddingShard:
    """Open a shard whose files were adopted in place. They keep their names and dtypes.

    Raises:
        InputError: a file is missing, or it has another size or another shape than when it was adopted.
    """
    files = recorded_files(record, manifest.about)
    EmbeddingShard.require_files(store, record, files, sizes, manifest.stage)
    layouts = {}
    for kind, name in files.items():
        header = read_header(store, name, sizes[name])
        expected = dims.get(kind, 0)
        if (header.rows, header.embed_dim) != (record.rows, expected):
            raise InputError(
                f"{store.url}/{name} has {header.rows} rows of {header.embed_dim}, the manifest says {record.rows} of "
                f"{expected}; run `priorkit adopt --in-place` again"
            )
        if header.layout is not None:
            layouts[kind] = header.layout
    return EmbeddingShard(store, record.rows, "its record", files, layouts)


def _recorded_sizes(store: Store, manifest: Manifest) -> dict[str, int]:
    """Return the sizes of the embeddings by kind, as recorded in the manifest.

    A folder that `embed` wrote records the size of its CLIP. A folder that `adopt` wrote records those of its spaces.

    Raises:
        InputError: the manifest describes neither, or a size is not plausible.
    """
    about = manifest.about
    if manifest.stage == "embed":
        if not {"clip", "clip_settings"} <= about.keys():
            raise InputError(f"{store.url} does not say which CLIP made it; run `priorkit embed` again")
        width = _recorded_width(store, manifest, about["clip"], "embed_dim")
        return dict.fromkeys(WORDS, width)
    spaces: Any = about.get("spaces")
    target = spaces.get("target") if isinstance(spaces, dict) else None
    source = spaces.get("source") if isinstance(spaces, dict) else None
    size = _recorded_width(store, manifest, target, "size")
    return {"img_emb": size, "text_emb": size if source is None else _recorded_width(store, manifest, source, "size")}


def _recorded_width(store: Store, manifest: Manifest, described: Any, name: str) -> int:
    """Return a size that the manifest records, such as the `embed_dim` of the CLIP model.

    Args:
        described: entry of the manifest that contains the size.
        name: name of the size: `embed_dim` or `token_width` of a CLIP, or `size` of a space.

    Raises:
        InputError: the size is missing, is not a positive whole number, or is greater than 2^20.
    """
    width = described.get(name) if isinstance(described, dict) else None
    if type(width) is not int or not 0 < width <= _MAX_WIDTH:
        whose = "the CLIP's" if manifest.stage == "embed" else "its space's"
        raise InputError(
            f"{store.url}: its manifest gives {width!r} as {whose} {name}; restore it, or run "
            f"`priorkit {manifest.stage}` into another folder"
        )
    return width


def _refuse_unfinished(store: Store, manifest: Manifest, sizes: Mapping[str, int]) -> None:
    """Check that a stage has finished writing the folder. Temporary files left by a killed process are ignored.

    Args:
        store: embeddings folder.
        manifest: manifest of the folder.
        sizes: sizes in bytes of the files in the data folders, keyed by path. Files in other folders are ignored.

    Raises:
        InputError: the manifest does not list all shards of the input, or a data folder contains a file that the
            manifest does not list.
    """
    planned = manifest.input.get("shards", 0)
    if len(manifest.shards) < planned:
        raise InputError(
            f"{store.url} holds {len(manifest.shards):,} of {planned:,} shards; "
            f"`priorkit {manifest.stage}` is still running or was killed: run it again"
        )
    recorded = {name for record in manifest.shards.values() for name in record.files}
    for name in sizes:
        unrecorded = name.partition("/")[0] in _DATA_FOLDERS and name not in recorded
        if unrecorded and not name.endswith(TEMPORARY_SUFFIX):
            raise InputError(
                f"{store.url}/{name} is in no record: `priorkit {manifest.stage}` is still running or was killed "
                "(run it again), or the file is not its own (remove it)"
            )
