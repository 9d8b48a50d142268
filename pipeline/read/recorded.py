"""Function that opens an embeddings folder with a manifest, and compares its files with the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..contract.manifest import Manifest
from ..contract.storage import TEMPORARY_SUFFIX, Store
from ..errors import InputError
from .shards import EmbeddingShard, FolderShards

_DATA_FOLDERS = ("img_emb", "text_emb", "metadata", "token_states")
"""Data folders: subfolders in which every file must belong to a shard in the manifest."""
_MAX_WIDTH = 1 << 20
"""Maximum plausible width of an embedding or token state. A larger value means that the manifest is damaged."""


def open_recorded(store: Store, manifest: Manifest) -> FolderShards:
    """Open the shards listed in a manifest that `embed` wrote.

    The header of an embedding array is read only if the file size does not match the number of rows and the embedding
    size in the manifest.

    Raises:
        InputError: the folder is incomplete, a file is missing or its size differs from the manifest, or the manifest
            does not describe the CLIP model.
    """
    if not {"clip", "clip_settings"} <= manifest.about.keys():
        raise InputError(f"{store.url} does not say which CLIP made it; run `priorkit embed` again")
    clip = manifest.about["clip"]
    embed_dim = _recorded_width(store, clip, "embed_dim")
    sizes = {name: size for folder in _DATA_FOLDERS for name, size in store.sizes(folder).items()}
    recorded_folders = {name.partition("/")[0] for record in manifest.shards.values() for name in record.files}
    for folder in sorted(recorded_folders - set(_DATA_FOLDERS)):
        sizes.update(store.sizes(folder))
    shards = [
        EmbeddingShard.from_record(store, manifest.shards[name], sizes, embed_dim) for name in sorted(manifest.shards)
    ]
    _refuse_unfinished(store, manifest, sizes)
    has_states = bool(shards) and shards[0].has("token_states")
    return FolderShards(
        shards=shards,
        embed_dim=embed_dim,
        token_width=_recorded_width(store, clip, "token_width") if has_states else None,
        about=manifest.about,
        recorded_fingerprint=manifest.content_fingerprint(),
    )


def _recorded_width(store: Store, clip: Any, name: str) -> int:
    """Return the property `name` (`embed_dim` or `token_width`) of the CLIP model, as recorded in the manifest.

    Raises:
        InputError: the property is missing, is not a positive whole number, or is greater than 2^20.
    """
    width = clip.get(name) if isinstance(clip, dict) else None
    if type(width) is not int or not 0 < width <= _MAX_WIDTH:
        raise InputError(
            f"{store.url}: its manifest gives {width!r} as the CLIP's {name}; restore it, or run "
            "`priorkit embed` into another folder"
        )
    return width


def _refuse_unfinished(store: Store, manifest: Manifest, sizes: Mapping[str, int]) -> None:
    """Check that `embed` has finished writing the folder. Temporary files left by a killed process are ignored.

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
            "`priorkit embed` is still running or was killed: run it again"
        )
    recorded = {name for record in manifest.shards.values() for name in record.files}
    for name in sizes:
        unrecorded = name.partition("/")[0] in _DATA_FOLDERS and name not in recorded
        if unrecorded and not name.endswith(TEMPORARY_SUFFIX):
            raise InputError(
                f"{store.url}/{name} is in no record: `priorkit embed` is still running or was killed "
                "(run it again), or the file is not its own (remove it)"
            )
