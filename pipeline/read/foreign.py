"""Function that opens an embeddings folder without a manifest: it groups files by shard and checks the file headers."""

from __future__ import annotations

import shlex
from concurrent.futures import ThreadPoolExecutor

from ..contract.embedding_files import pair_files
from ..contract.storage import Store
from ..contract.vectors.arrays import read_header
from ..contract.vectors.embeddings import first_files, folder_notes, shard_faults
from ..errors import InputError
from .shards import EmbeddingShard, FolderShards

_HEADER_THREADS = 16
"""Number of threads that read file headers. The number is high, to hide the latency of remote storage."""


def open_foreign(store: Store) -> FolderShards | None:
    """Open the shards of a folder that clip-retrieval wrote or LAION published.

    Returns:
        Shards and properties of the folder; None if the folder contains no such shards.

    Raises:
        InputError: a file is missing or damaged, the files of a shard differ in their number of rows, the embeddings in
            the folder differ in size, a key or caption column exists in only some of the metadata files, a key, caption
            or image identifier column appears twice in a file, or a key column cannot be converted to text.
    """
    pairs = pair_files(store.names(), store.url)
    if not pairs:
        return None
    names = [name for files in pairs.values() for name in files.values()]
    folders = sorted({name.partition("/")[0] for name in names})
    sizes = {name: size for folder in folders for name, size in store.sizes(folder).items()}
    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        read = pool.map(lambda name: read_header(store, name, sizes.get(name)), names)
        headers = dict(zip(names, read, strict=True))
    first = first_files(pairs.values(), headers)
    shards = []
    dims = {
        kind: {headers[files[kind]].embed_dim for files in pairs.values() if kind in files}
        for kind in ("img_emb", "text_emb")
    }
    if all(len(each) == 1 for each in dims.values()) and dims["img_emb"] != dims["text_emb"]:
        raise InputError(
            f"{store.url}: text_emb holds embeddings of {min(dims['text_emb'])}, img_emb of {min(dims['img_emb'])}, so "
            "they are not of one CLIP; adopt them as two spaces: "
            f"`priorkit adopt {shlex.quote(store.url)} NEW --not-clip NAME`"
        )
    for files in pairs.values():
        for _, fault in shard_faults(store.url, files, headers, first):
            raise InputError(fault)
        image = files["img_emb"]
        layouts = {kind: layout for kind, name in files.items() if (layout := headers[name].layout) is not None}
        shards.append(EmbeddingShard(store, headers[image].rows, f"the header of {image}", files, layouts))
    return FolderShards(
        shards=shards,
        embed_dim=headers[first["img_emb"]].embed_dim,
        text_dim=headers[first["img_emb"]].embed_dim,
        foreign_files=tuple(names),
        notes=folder_notes(pairs, headers),
    )
