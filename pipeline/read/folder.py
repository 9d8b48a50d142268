"""Function that opens an embeddings folder, with or without a manifest."""

from __future__ import annotations

from ..contract.embedding_files import EMBEDDING_STAGES
from ..contract.manifest import read_manifest, require_stage
from ..contract.other_layouts import require_known_layout
from ..contract.storage import Store
from .foreign import open_foreign
from .recorded import open_recorded
from .shards import FolderShards


def open_folder(store: Store) -> FolderShards:
    """Open the shards of a folder written by `embed`, `adopt` or clip-retrieval, or published by LAION.

    The shards are listed in the manifest. Without a manifest, the file names determine the shards.

    Raises:
        InputError: the folder contains no embeddings, or its embeddings are damaged or incomplete.
    """
    manifest = read_manifest(store)
    if manifest is None:
        if (foreign := open_foreign(store)) is not None:
            return foreign
        require_known_layout(store)
    return open_recorded(store, require_stage(store, manifest, *EMBEDDING_STAGES))
