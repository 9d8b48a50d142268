"""Names in the manifest of the train stage. Later stages read them too."""

from __future__ import annotations

from ...pipeline.contract.file_marks import FileMark, from_json
from ...pipeline.contract.manifest import Manifest

STAGE = "train"
"""Stage name in the manifest."""
RECORD = "prior"
"""Name of the only record. It exists once the prior has been trained to its last step."""


def recorded_files(manifest: Manifest | None) -> dict[str, FileMark]:
    """Return the marks of the embedding files that training read, if the embeddings have no manifest of their own."""
    return from_json(manifest.input.get("files")) if manifest is not None and manifest.stage == STAGE else {}
