"""The command `priorkit inspect`: tables, JSON and exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner

from priorkit.cli import app

WriteEmbeddings = Callable[..., Path]
COLUMNS = {"image_path": lambda name: name}


def test_a_sound_folder_exits_with_0(write_embeddings: WriteEmbeddings) -> None:
    result = CliRunner().invoke(app, ["inspect", str(write_embeddings([["a", "b"]], columns=COLUMNS))])
    assert result.exit_code == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    assert ["stage", "embed"] in rows
    assert ["rows", "2"] in rows
    assert ["health", "sound"] in rows


def test_damage_exits_with_1_and_is_in_the_json(write_embeddings: WriteEmbeddings) -> None:
    folder = write_embeddings([["a", "b"]], columns=COLUMNS)
    path = folder / "img_emb/img_emb_0000.npy"
    path.write_bytes(path.read_bytes()[:-1])
    result = CliRunner().invoke(app, ["inspect", str(folder), "--json"])
    assert result.exit_code == 1
    assert result.stderr == f"error: {folder} is damaged: 1 problems\n"
    assert json.loads(result.stdout)["problems"] == [
        "shard 0000: img_emb/img_emb_0000.npy differs from what was committed"
    ]
