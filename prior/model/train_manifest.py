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
    """Return the size, modification time and hash of each embedding file that training read, keyed by file name.

    Training records these values only if the embedding folder has no manifest that contains the hashes. The result is
    empty if nothing is recorded.

    Args:
        manifest: manifest to read. If None or from another stage, the result is empty.
    """
    return from_json(manifest.input.get("files")) if manifest is not None and manifest.stage == STAGE else {}
