"""Inspection of a folder written by any stage (such as `download` or `embed`), or by another program.

If the folder has a manifest, each file's hash is first compared with the hash in the manifest. Then the files of each
shard are compared with each other.
"""

from __future__ import annotations

from collections.abc import Callable

from ..compute.stage import ProgressCallback, no_progress
from ..contract.manifest import Manifest, differing_files, read_manifest
from ..contract.other_layouts import describe_other_layout
from ..contract.storage import Store
from ..contract.tar_names import is_tar
from ..errors import InputError
from .embedding_folders import RecordedEmbeddings, inspect_foreign_embeddings
from .findings import Inspection
from .image_folders import RecordedImages, inspect_foreign_images

__all__ = ["Inspection", "inspect_folder"]

_Recorded = RecordedImages | RecordedEmbeddings
_INSPECTORS: dict[str, Callable[[Store, Inspection, Manifest], _Recorded]] = {
    "download": RecordedImages,
    "embed": RecordedEmbeddings,
    "adopt": RecordedEmbeddings,
}
"""Inspector class for each stage whose output files are parsed.

For other stages, the files are not parsed; only their hashes are compared with the manifest.
"""


def inspect_folder(path: str, progress: ProgressCallback = no_progress) -> Inspection:
    """Inspect a folder written by any stage (such as `download` or `embed`), by img2dataset or by clip-retrieval.

    Memory use is bounded. The inspection reads one block of rows at a time. To find near duplicates, it stores up to
    100,000 embeddings. To find exact duplicates, it stores 16 bytes per key (for up to 10 million keys) and 16 bytes
    per image (for up to 10 million images).

    Args:
        path: folder to inspect.
        progress: callback that receives the number of inspected shards, the total, and the name of the next shard.

    Raises:
        InputError: the folder contains nothing to inspect, or its manifest cannot be read.
    """
    store = Store(path)
    if store.fs.isfile(store.root):
        raise InputError(f"{store.url} is a file; name the folder it is in")
    if not store.fs.isdir(store.root) and store.is_local:
        raise InputError(f"{store.url}: no such folder, so nothing to inspect here")
    manifest = read_manifest(store)
    if manifest is None:
        return _inspect_foreign(store, progress)
    return _inspect_recorded(store, manifest, progress)


def _inspect_recorded(store: Store, manifest: Manifest, progress: ProgressCallback) -> Inspection:
    """Inspect a folder with a manifest."""
    inspection = Inspection(
        folder=store.url,
        stage=manifest.stage,
        shards=len(manifest.shards),
        rows=manifest.rows,
        bytes=sum(entry.bytes for record in manifest.shards.values() for entry in record.files.values()),
        counts=manifest.counts(),
        about=manifest.about,
        settings=manifest.settings,
    )
    kind = _INSPECTORS.get(manifest.stage)
    inspector = kind(store, inspection, manifest) if kind is not None else None
    if not manifest.shards:
        inspection.add_note(f"no shard is recorded yet: `priorkit {manifest.stage}` has not come that far")
    for done, (name, record) in enumerate(sorted(manifest.shards.items())):
        progress(done, len(manifest.shards), name)
        differing = differing_files(store, record)
        for file in differing:
            state = "is missing" if store.size(file) is None else "differs from what was committed"
            inspection.add_problem(f"shard {name}: {file} {state}")
        if inspector is not None:
            inspector.inspect(record, differing)
    progress(len(manifest.shards), len(manifest.shards), "")
    if inspector is not None:
        inspector.finish()
    return inspection


def _inspect_foreign(store: Store, progress: ProgressCallback) -> Inspection:
    """Inspect a folder without a manifest. The file names determine whether it contains images or embeddings."""
    names = store.names()
    inspection = None
    if any(map(is_tar, names)):
        inspection = inspect_foreign_images(store, names, progress)
    elif any(name.endswith((".npy", ".parquet")) for name in names):
        inspection = inspect_foreign_embeddings(store, names, progress)
    if inspection is None:
        if layout := describe_other_layout(store, names):
            raise InputError(f"{store.url} {layout}")
        raise InputError(
            f"{store.url}: no manifest, image shards (*.tar) or embeddings (img_emb/ and text_emb/) to inspect here"
        )
    inspection.bytes = sum(store.sizes().values())
    return inspection
