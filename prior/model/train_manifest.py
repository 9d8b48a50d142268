"""Names used in the manifest of the train stage, and a function that reads the manifest.

The manifest is a JSON file that records the inputs, settings and outputs of a stage.
"""

from __future__ import annotations

from ...pipeline.contract.file_marks import FileMark, from_json
from ...pipeline.contract.manifest import Manifest

STAGE = "train"
"""Name of the stage, as recorded in its manifest."""
RECORD = "prior"
"""Name of the only record in the manifest. The record lists the files of the prior, and exists only after training has
finished."""


def recorded_files(manifest: Manifest | None) -> dict[str, FileMark]:
    """Return the file marks (hash, size and modification time) of the embedding files that training read, by file name.

    Training records file marks only if the embedding folder has no manifest that contains the hashes.

    Args:
        manifest: manifest of the train stage, or None.

    Returns:
        The recorded file marks. Empty if the manifest is None, belongs to another stage, or records no file marks.
    """
    return from_json(manifest.input.get("files")) if manifest is not None and manifest.stage == STAGE else {}
