"""Names in the manifest of the train stage, which the stages after it read too."""

from __future__ import annotations

from ...pipeline.contract.file_marks import FileMark, from_json
from ...pipeline.contract.manifest import Manifest

STAGE = "train"
"""Name of the stage in its manifest."""
RECORD = "prior"
"""Name of the only record: it exists once the prior has been trained to its last step."""


def recorded_files(manifest: Manifest | None) -> dict[str, FileMark]:
    """Return the marks of the embedding files that a training read, where those have no manifest of their own."""
    return from_json(manifest.input.get("files")) if manifest is not None and manifest.stage == STAGE else {}
