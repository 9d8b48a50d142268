"""The page on downloading: its commands run, and its table of outcomes is that of the code."""

from __future__ import annotations

import hashlib
import re
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.download.outcomes import TRANSIENT_OUTCOMES

from .conftest import LIST_ROWS, Gate, Workspace

PAGE = (Path(__file__).parents[2] / "docs/pages/download.md").read_text(encoding="utf-8")
HERE = ("--set", "download.allow_private_addresses=true", "--set", "download.image_size=32")
"""The test server is on this machine."""


def test_the_table_says_what_is_tried_again() -> None:
    rows = re.findall(r"^\| (`[^|]*`) \| [^|]* \| (yes|no|) ?\|$", PAGE, re.MULTILINE)
    outcomes = {outcome: again for cell, again in rows for outcome in re.findall(r"`(\w+)`", cell)}
    assert {outcome for outcome, again in outcomes.items() if again == "yes"} == TRANSIENT_OUTCOMES
    assert len(outcomes) > 20


@pytest.mark.slow
def test_its_commands_run(workspace: Workspace, gate: Gate, small_list: pa.Table) -> None:
    served = [gate.url + f"/{index}.png" for index in range(LIST_ROWS)]
    bodies = [(gate.folder / f"{index}.png").read_bytes() for index in range(LIST_ROWS)]
    hashes = [hashlib.md5(body).hexdigest() for body in bodies]
    hashes[3] = "0" * 32
    pq.write_table(pa.table({"url": served, "caption": served, "md5": hashes}), workspace.path / "hashes.parquet")
    boxes = [[[0.1, 0.1, 0.5, 0.5]]] * LIST_ROWS
    pq.write_table(pa.table({"url": served, "caption": served, "face_bboxes": boxes}), workspace.path / "faces.parquet")
    (workspace.path / "photo.png").write_bytes(bodies[0])
    captioned = [f"a square\t{url}\n" for url in served]
    (workspace.path / "Train_GCC-training.tsv").write_text("".join(captioned))
    (workspace.path / "paths.csv").write_text("url,caption\nphoto.png,a\n")
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert len(commands) == 9
    outputs = [workspace.run(*command[1:], *HERE).stdout for command in commands]
    assert "nothing was done" in outputs[0]
    for named in ("http_4xx 404", "hosts with most failures", "127.0.0.1", "rows whose URL came before"):
        assert named in outputs[1]
    assert "tried again" in outputs[2]
    stored = [
        pq.read_table(workspace.data / name / "00000.parquet") for name in ("cc3m", "original", "blurred", "local")
    ]
    assert [table.column("status").to_pylist().count("success") > 0 for table in stored] == [True] * 4
    assert "hash_mismatch" in outputs[7]
    assert "engine=img2dataset does not apply download.exif_orientation=apply" in outputs[8]
