"""Names used in the manifest of the train stage, and a function that reads the manifest.

The manifest is a JSON file that records the inputs, settings and outputs of a stage.
"""

from __future__ import annotations

from ...pipeline.contract.file_marks import FileMark, from_json
from ...pipeline.contract.manifest import Manifest

STAGE = "train"
"""Name of the stage, as recorded in its manifest."""
RECORD = "prior"
"""Name of the manifest's only record, which lists the files of the finished prior. Its presence means that training
has finished."""


def recorded_files(manifest: Manifest | None) -> dict[str, FileMark]:
    """Return the size, modification time and hash of each embedding file that training read, keyed by file name.

    Training records these values only if the embedding folder has no manifest of its own, which would contain the
    hashes. In all other cases, the result is empty.

    Args:
        manifest: manifest of the train stage, or None.
    """
    return from_json(manifest.input.get("files")) if manifest is not None and manifest.stage == STAGE else {}
