"""Folders of embeddings: missing and extra files, and the rows that a place names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from priorkit.pipeline.compute.stage import no_progress
from priorkit.pipeline.contract.empty_inputs import EmptyInputs, write_empty_inputs
from priorkit.pipeline.contract.manifest import read_manifest
from priorkit.pipeline.contract.storage import TEMPORARY_SUFFIX, Store
from priorkit.pipeline.inspect.embedding_folders import RecordedEmbeddings, inspect_foreign_embeddings
from priorkit.pipeline.inspect.findings import Inspection

WriteEmbeddings = Callable[..., Path]
SHARDS = [["a", "b"], ["c", "d", "e"]]
COLUMNS = {"image_path": lambda name: name}


def inspect_recorded(folder: Path, settings: dict[str, bool] | None = None) -> Inspection:
    store = Store(str(folder))
    manifest = read_manifest(store)
    assert manifest is not None
    manifest.settings.update(settings or {})
    inspection = Inspection(store.url, "embed", 2, 5, 0)
    inspector = RecordedEmbeddings(store, inspection, manifest)
    for record in manifest.shards.values():
        inspector.inspect(record, [])
    inspector.finish()
    return inspection


def test_a_sound_folder_has_no_problems(write_embeddings: WriteEmbeddings) -> None:
    inspection = inspect_recorded(write_embeddings(SHARDS, columns=COLUMNS), {"token_states": True})
    assert inspection.problems == []
    assert inspection.looked_at["rows of metadata"] == 5


def test_kinds_that_the_settings_ask_for_must_be_recorded(write_embeddings: WriteEmbeddings) -> None:
    folder = write_embeddings(SHARDS, columns=COLUMNS)
    store = Store(str(folder))
    manifest = store.read_json("manifest.json")
    for shard in manifest["shards"].values():
        shard["files"] = {name: entry for name, entry in shard["files"].items() if "token_states" not in name}
    store.write_json("manifest.json", manifest)
    for path in (folder / "token_states").iterdir():
        path.unlink()
    assert inspect_recorded(folder, {"token_states": False}).problems == []
    assert inspect_recorded(folder, {"token_states": True}).problems == [
        f"shard {shard}: its record has no file of {kind}"
        for shard in ("0000", "0001")
        for kind in ("token_states", "offsets")
    ]


def test_unrecorded_files_are_problems_and_temporary_ones_notes(write_embeddings: WriteEmbeddings) -> None:
    folder = write_embeddings(SHARDS, columns=COLUMNS)
    (folder / "img_emb/img_emb_0007.npy").write_bytes(b"")
    (folder / f"metadata/metadata_0007.parquet{TEMPORARY_SUFFIX}").write_bytes(b"")
    inspection = inspect_recorded(folder)
    assert [problem.partition(" is in no record")[0] for problem in inspection.problems] == ["img_emb/img_emb_0007.npy"]
    assert any(note.startswith("metadata/metadata_0007") for note in inspection.notes)


def test_places_count_rows_over_all_shards(write_embeddings: WriteEmbeddings) -> None:
    """Rows 0 and 4 of the folder have the same image."""
    folder = write_embeddings([["a", "b"], ["c", "d", "a"]], columns=COLUMNS)
    notes = inspect_recorded(folder).notes
    assert any(note.endswith("such as shard 0001, row 2 of shard 0000, row 0") for note in notes)


@pytest.mark.parametrize("lost", [None, "text_emb/text_emb_0001.npy"])
def test_a_foreign_folder_is_paired_by_number(write_embeddings: WriteEmbeddings, lost: str | None) -> None:
    folder = write_embeddings(SHARDS)
    (folder / "manifest.json").unlink()
    if lost is not None:
        (folder / lost).unlink()
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if "token_states" not in str(path)]
    inspection = inspect_foreign_embeddings(Store(str(folder)), names, no_progress)
    assert inspection is not None
    assert (inspection.shards, inspection.rows) == (2, 5)
    assert len(inspection.problems) == (lost is not None)


def test_a_folder_of_other_files_is_not_inspected(tmp_path: Path) -> None:
    assert inspect_foreign_embeddings(Store(str(tmp_path)), ["notes.txt"], no_progress) is None


def test_outputs_for_empty_inputs_are_compared_with_their_record(write_embeddings: WriteEmbeddings) -> None:
    folder = write_embeddings(SHARDS, columns=COLUMNS)
    store = Store(str(folder))
    values = np.ones(8, np.float32)
    about = write_empty_inputs(store, EmptyInputs(values, values, None))
    assert inspect_recorded(folder).problems == []  # a file that is not recorded may be of a run that was killed
    manifest = store.read_json("manifest.json")
    manifest["about"] |= about
    store.write_json("manifest.json", manifest)
    assert inspect_recorded(folder).problems == []
    write_empty_inputs(store, EmptyInputs(values, 2 * values, None))
    (problem,) = inspect_recorded(folder).problems
    assert "empty_inputs.safetensors differs from the manifest" in problem
