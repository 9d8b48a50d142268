"""Names in the manifest of the train stage, for use by the train stage and by later stages."""

from __future__ import annotations

from ...pipeline.contract.file_marks import FileMark, from_json
from ...pipeline.contract.manifest import Manifest

STAGE = "train"
"""Stage name in the manifest."""
RECORD = "prior"
"""Name of the manifest's only record, which is added after the last training step."""


def recorded_files(manifest: Manifest | None) -> dict[str, FileMark]:
    """Return the size, modification time and hash of each embedding file that training read, keyed by file name.

    Training records these values only if the embeddings have no manifest. Otherwise, the result is empty.
    """
    return from_json(manifest.input.get("files")) if manifest is not None and manifest.stage == STAGE else {}
