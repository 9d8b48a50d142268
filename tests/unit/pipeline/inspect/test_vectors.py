"""Arrays of embedding shards: blocks of rows, unit vectors, and shards whose pairs do not belong together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import InputError
from priorkit.pipeline.inspect.findings import Inspection
from priorkit.pipeline.inspect.vectors import ShardParts, VectorInspector, array_blocks

ROWS, DIM = 60, 16


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


@pytest.mark.parametrize("block_rows", [1, 4, 7, 100])
def test_blocks_are_the_rows_of_the_array(tmp_path: Path, block_rows: int) -> None:
    rows = np.arange(21, dtype=np.int32).reshape(7, 3)
    np.save(tmp_path / "rows.npy", rows)
    blocks = list(array_blocks(Store(str(tmp_path)), "rows.npy", block_rows))
    assert [len(block) for block in blocks[:-1]] == [block_rows] * (len(blocks) - 1)
    assert np.array_equal(np.concatenate(blocks), rows)


def test_an_array_that_ends_early_names_the_row(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.zeros((7, 3), np.int32))
    path = tmp_path / "rows.npy"
    path.write_bytes(path.read_bytes()[:-13])  # a row has 12 bytes: row 5 lacks its last byte
    with pytest.raises(InputError, match="ends early, in row 5"):
        list(array_blocks(Store(str(tmp_path)), "rows.npy", 4))


def test_columns_first_order_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.asfortranarray(np.zeros((7, 3))))
    with pytest.raises(InputError, match="Fortran"):
        list(array_blocks(Store(str(tmp_path)), "rows.npy"))


class Folder:
    """Shards of images, and of texts near them. Tests damage the arrays, then inspect them."""

    def __init__(self, path: Path, shards: int) -> None:
        random = np.random.default_rng(0)
        self.store = Store(str(path))
        self.path = path
        self.image = [unit(random.normal(size=(ROWS, DIM))) for _ in range(shards)]
        self.text = [unit(image + 0.3 * unit(random.normal(size=(ROWS, DIM)))) for image in self.image]

    def inspect(self, embed_dim: int | None = DIM) -> Inspection:
        sizes = {} if embed_dim is None else dict.fromkeys(("img_emb", "text_emb"), embed_dim)
        inspection = Inspection(self.store.url, "embed", len(self.image), ROWS * len(self.image), 0)
        inspector = VectorInspector(self.store, inspection, inspection.rows, sizes, "the test")
        for number, arrays in enumerate(zip(self.image, self.text, strict=True)):
            files = {kind: f"{kind}_{number}.npy" for kind in ("img_emb", "text_emb")}
            for name, values in zip(files.values(), arrays, strict=True):
                np.save(self.path / name, values)
            report = dict.fromkeys(files, inspection.add_problem)
            inspector.inspect(ShardParts(str(number), ROWS * number, ROWS, "the test", files, report))
        inspector.finish(lambda row: f"row {row}")
        return inspection


def test_sound_pairs_have_no_findings(tmp_path: Path) -> None:
    inspection = Folder(tmp_path, 2).inspect()
    assert (inspection.problems, inspection.notes) == ([], [])
    pairs = inspection.distributions["cosine of image and text"]
    unrelated = inspection.distributions["cosine of unrelated image and text"]
    assert pairs["rows"] == unrelated["rows"] == 2 * ROWS
    assert pairs["mean"] > 0.9
    assert abs(unrelated["mean"]) < 0.1
    assert inspection.distributions["norm of text embeddings"]["rows"] == 2 * ROWS


def test_a_row_that_is_not_a_unit_vector_is_named(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 2)
    folder.text[1][7] *= 2
    folder.image[1][0] = np.nan
    assert sorted(folder.inspect().problems) == [
        "shard 1, row 0: image embedding holds NaN",
        "shard 1, row 7: text embedding has norm 2, not 1",
    ]


def test_a_shard_with_shifted_texts_is_named(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 3)
    folder.text[1] = np.roll(folder.text[1], 1, axis=0)
    (problem,) = folder.inspect().problems
    assert problem.startswith("shard 1, rows 0 to 59: images and texts do not belong together")


def test_texts_that_are_shifted_everywhere_are_a_note(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 2)
    folder.text = [np.roll(text, 1, axis=0) for text in folder.text]
    inspection = folder.inspect()
    assert inspection.problems == []
    assert any(note.startswith("images and texts of pairs are no more alike") for note in inspection.notes)


def test_duplicates_and_near_duplicates_are_noted_by_row(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 2)
    folder.image[1][3] = folder.image[0][5]
    folder.image[1][9] = unit((folder.image[0][8] + np.float16(0.01))[None])[0]
    notes = folder.inspect().notes
    assert "1 image embeddings are exact duplicates of earlier ones, such as row 63 of row 5" in notes
    assert any("1 pairs of near duplicate images" in note and note.endswith("row 8 and row 69") for note in notes)


def test_another_width_or_number_of_rows_is_a_problem(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 2)
    folder.image[1] = folder.image[1][:-1]
    assert folder.inspect().problems == ["shard 1: img_emb_1.npy has 59 rows, the test says 60"]
    assert folder.inspect(embed_dim=8).problems[0] == "shard 0: img_emb_0.npy holds embeddings of 16, the test says 8"
