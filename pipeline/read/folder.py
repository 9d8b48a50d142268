"""Shards of any folder of embeddings, opened by its manifest or by the names of its files."""

from __future__ import annotations

from ..contract.manifest import read_manifest, require_stage
from ..contract.other_layouts import require_known_layout
from ..contract.storage import Store
from .foreign import open_foreign
from .recorded import open_recorded
from .shards import FolderShards


def open_folder(store: Store) -> FolderShards:
    """Open the shards that `embed`, clip-retrieval or LAION wrote.

    Raises:
        InputError: the folder holds no embeddings, or they are damaged or unfinished.
    """
    manifest = read_manifest(store)
    if manifest is None:
        if (foreign := open_foreign(store)) is not None:
            return foreign
        require_known_layout(store)
    return open_recorded(store, require_stage(store, manifest, "embed"))
