"""Bad input, full disks, wrong folders and interruptions: each a clear error, and nothing lost or changed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

from .conftest import (
    HANG_SECONDS,
    STAGE_FOLDERS,
    Finished,
    Gate,
    Workspace,
    committed,
    environment,
    stop,
    wait_for,
    wait_for_stop,
)

HOSTILE = (
    "[bold red]not markup[/bold red] [/] [link=file:///etc/passwd]x[/link]",
    "\x1b[2J\x1b]0;title\x07 clears the screen \x9b31m",
    "<script>alert(1)</script> & \"quotes\" 'and' <img src=x onerror=alert(2)>",
    "\u202egnp.exe\u202c reads backwards \u2066isolated\u2069 \u200f",
    "null \x00, bell \x07, backspace \x08\x08\x08, return \r over, tab \t and\nnew line\n\nerror: all is well",
    "{braces} %s %(name)s $HOME `id` \\n \\x1b[31m",
    "\u2028line separator\u2029paragraph separator\ufeff",
    "",
    "emoji \U0001f469\u200d\U0001f680 and \u0928\u092e\u0938\u094d\u0924\u0947 stay as they are",
)
"""Captions that try to steer a terminal, a page or a format string."""


def assert_terminal_safe(text: str) -> None:
    """Nothing but visible characters and line ends reaches the terminal."""
    unsafe = {c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs")}
    assert unsafe == set()


@pytest.fixture
def bad_lists(workspace: Workspace) -> Workspace:
    """The working directory with lists that cannot be used."""
    whole = (workspace.path / "urls.parquet").read_bytes()
    (workspace.path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (workspace.path / "noise.parquet").write_bytes(bytes(range(256)) * 8)
    (workspace.path / "zero.parquet").write_bytes(b"")
    empty = pa.table({"url": pa.array([], pa.string()), "caption": pa.array([], pa.string())})
    pq.write_table(empty, workspace.path / "empty.parquet")
    (workspace.path / "header.csv").write_text("url,caption\n")
    (workspace.path / "zero.csv").write_text("")
    (workspace.path / "list.pdf").write_bytes(b"%PDF-1.4")
    (workspace.path / "half.jsonl").write_text('{"url": "http://x/1.jpg", "caption": "one"}\n{"url": ')
    (workspace.path / "no_lists").mkdir()
    pq.write_table(pa.table({"urls": ["a"], "text": ["b"]}), workspace.path / "other_columns.parquet")
    return workspace


@pytest.mark.slow
def test_a_list_that_cannot_be_used_is_named(bad_lists: Workspace) -> None:
    lists = {
        "missing.parquet": "missing.parquet: no such file or folder",
        "cut.parquet": "cut.parquet: cannot be read as parquet",
        "noise.parquet": "noise.parquet: cannot be read as parquet",
        "zero.parquet": "zero.parquet: cannot be read as parquet",
        "empty.parquet": "empty.parquet: the list is empty; it needs at least one row",
        "header.csv": "header.csv: the list is empty; it needs at least one row",
        "zero.csv": "zero.csv: the list is empty; it needs at least one row",
        "list.pdf": "list.pdf: unknown kind of list; known endings are parquet",
        "half.jsonl": "half.jsonl: cannot be read as jsonl",
        "no_lists": "no_lists: no list of URLs in this folder",
        "other_columns.parquet": "no column 'url'; did you mean 'urls'? The list has 'urls', 'text' (`--set download",
    }
    wrong, suggestion = (
        ("download", "urls.parquet", "--caption-column", "captoin"),
        "no column 'captoin'; did you mean 'caption'?",
    )
    bad_lists.refuses_each(
        [(("download", name), named) for name, named in lists.items()]
        + [(wrong, suggestion), ((*wrong, "--dry-run"), suggestion)]
    )


@pytest.mark.slow
def test_run_checks_list_and_recipe_before_it_starts(
    holding: Callable[..., Workspace], bad_lists: Workspace, tmp_path: Path
) -> None:
    workspace = holding()
    recipe = (workspace.path / "recipe.yaml").read_text()
    for name, text in {
        "unknown.yaml": recipe.replace("  batch_size: 32", "  batchsize: 32"),
        "value.yaml": recipe.replace("  steps: 60", "  steps: sixty"),
        "broken.yaml": recipe.replace("train:", "train: ["),
        "list.yaml": "- download\n- embed\n",
        "tokens.yaml": recipe.replace("token_states: true", "token_states: false").replace(
            "    depth: 1", "    depth: 1\n    max_text_len: 8"
        ),
    }.items():
        (workspace.path / name).write_text(text)
    (workspace.path / "binary.yaml").write_bytes(b"\xff\xfe\x00binary")
    run = ("run", "recipe.yaml", "--set")
    unknown = "train.batchsize: unknown key; did you mean 'batch_size'?"
    workspace.refuses_each([
        ((*run, "urls=missing.csv"), "missing.csv: no such file or folder"),
        ((*run, "urls=cut.parquet"), "cut.parquet: cannot be read as parquet"),
        ((*run, "download.url_column=link", "--overwrite"), "no column 'link'"),
        (("run", "unknown.yaml"), unknown),
        (("train", "unknown.yaml"), unknown),
        (("recipes", "validate", "value.yaml"), "train.steps"),
        (("recipes", "validate", "list.yaml"), "list.yaml: a recipe is a mapping of sections"),
        (("recipes", "validate", "binary.yaml"), "binary.yaml"),
        (("run", "tokens.yaml"), "train.network takes up to 8 token states: set embed.token_states=true"),
    ])  # fmt: skip
    broken = workspace.run("run", "broken.yaml", code=1).stderr
    assert broken.startswith("error: broken.yaml: not YAML")
    assert "line" in broken


@pytest.fixture
def other_clip(tiny_clip: Path, tmp_path: Path) -> Path:
    """A CLIP of the same shape with other weights."""
    folder = tmp_path / "other_clip"
    shutil.copytree(tiny_clip, folder)
    weights = safetensors.numpy.load_file(folder / "open_clip_model.safetensors")
    weights["text_projection"] = weights["text_projection"] * 2
    safetensors.numpy.save_file(weights, folder / "open_clip_model.safetensors")
    return folder


@pytest.mark.slow
def test_a_recipe_of_another_clip_is_refused(holding: Callable[..., Workspace], other_clip: Path) -> None:
    workspace = holding()
    other = ("--set", f"embed.clip.model=local-dir:{other_clip}")
    workspace.refuses_each([
        (("train", "recipe.yaml", *other), "is not the one that made"),
        (("run", "recipe.yaml", *other), "made with other settings (clip.files.open_clip_model"),
        (("run", "recipe.yaml", "--set", "embed.clip={}"), "clip.pretrained"),
    ])  # fmt: skip


@pytest.mark.slow
def test_a_clip_that_is_not_there_is_named_and_the_right_one_still_works(
    holding: Callable[..., Workspace], finished: Finished, tiny_clip: Path
) -> None:
    workspace = holding("download")
    workspace.refuses("embed", "--model", "local-dir:no/clip", named="no/clip holds no open_clip_config.json")
    weights = ("--pretrained", "no/weights.pt")
    workspace.refuses("embed", *weights, named="embed.clip.pretrained=no/weights.pt: no such file")
    before = workspace.committed("download")
    error = workspace.run("embed", "--model", "ViT-B-23", code=1).stderr
    assert "embed.clip.model=ViT-B-23: open_clip has no such model; nearest: ViT-B-" in error
    error = workspace.run("embed", "--model", "ViT-B-32", "--pretrained", "no_such_tag", code=1).stderr
    assert "no_such_tag" in error
    workspace.run("run", "recipe.yaml", "--until", "embed")
    assert workspace.committed("download") == before
    assert workspace.committed("embed") == finished.workspace.committed("embed")


@pytest.mark.slow
def test_hostile_captions_pass_through_unchanged_and_steer_nothing(workspace: Workspace, gate: Gate) -> None:
    captions = [HOSTILE[index % len(HOSTILE)] for index in range(90)]
    urls = [f"{gate.url}/{index}.png" for index in range(90)]
    urls[4] = f"{gate.url}/\x1b[31m[bold]gone[/bold].png"
    column = "\x1b[1mnote\u202e[/]"
    table = pa.table({"url": urls, "caption": captions, column: captions})
    pq.write_table(table, workspace.path / "urls.parquet")
    assert_terminal_safe(workspace.refuses("download", "urls.parquet", "--url-column", "note", named="did you mean"))
    first = workspace.run("run", "recipe.yaml")
    prompts = [caption for caption in HOSTILE if "\x00" not in caption]
    drawn = workspace.run("sample", "data/prior", *prompts, "--steps", "2")
    seen = [first, drawn, workspace.run("status", "recipe.yaml")]
    seen += [workspace.run("inspect", f"data/{folder}") for folder in STAGE_FOLDERS.values()]
    for done in seen:
        assert_terminal_safe(done.stdout)
        assert_terminal_safe(done.stderr.replace("\r", ""))
    assert "[bold red]not markup[/bold red]" in drawn.stdout
    assert "\\x1b[2J" in drawn.stdout

    images = [pq.read_table(path) for path in sorted(workspace.folder("download").glob("*.parquet"))]
    rows = pa.concat_tables(images)
    assert rows["caption"].to_pylist() == captions
    assert rows["url"].to_pylist() == urls
    assert rows[column].to_pylist() == captions
    metadata = [pq.read_table(path) for path in sorted((workspace.folder("embed") / "metadata").iterdir())]
    kept = [caption for index, caption in enumerate(captions) if index != 4]
    assert pa.concat_tables(metadata)["caption"].to_pylist() == kept


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Callable[[], None]]:
    """A file system of its own at a folder; yields what makes it large."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "priorkit-test", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True) and None
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def on_disk(folder: Path) -> int:
    """Kilobytes that the files of a folder take, in pages."""
    return sum(-(-path.stat().st_size // 4096) * 4 for path in folder.rglob("*") if path.is_file())


UNCHECKED = """
from priorkit.cli import main
from priorkit.pipeline.embed import stage
stage.require_space = lambda plan: None
main()
"""
"""The command without the check of the free space, by which so small a disk is refused at once."""


@pytest.mark.root
@pytest.mark.parametrize(("stage", "needs"), [("download", ()), ("embed", ("download",)), ("train", ("embed",))])
def test_a_full_disk_loses_nothing_that_was_committed(
    holding: Callable[..., Workspace], workspace: Workspace, finished: Finished, stage: str, needs: tuple[str, ...]
) -> None:
    if needs:
        holding(*needs)
    given = workspace.snapshot()
    folder = workspace.folder(stage)
    command = ["train", "recipe.yaml"] if stage == "train" else ["run", "recipe.yaml", "--until", stage]
    with small_disk(folder, on_disk(finished.workspace.folder(stage)) // 2) as enlarge:
        for _ in range(2 if stage == "download" else 1):  # a second try on the full disk does no harm
            if stage == "embed":
                assert "and the disk has" in workspace.run(*command, code=1).stderr
                done = subprocess.run(
                    [sys.executable, "-c", UNCHECKED, *command],
                    cwd=workspace.path, env=environment(), capture_output=True, text=True, timeout=HANG_SECONDS,
                )  # fmt: skip
                assert done.returncode == 1
                assert "Traceback" not in done.stderr
            else:
                done = workspace.run(*command, code=1)
            assert "error: no space left on the disk" in done.stderr
            assert "the same command resumes" in done.stderr
        assert not list(folder.rglob("*tmp"))
        now = workspace.snapshot()
        assert {name: now[name] for name in given} == given
        enlarge()
        again = workspace.json(*command)
        done_now = again["done_now"] if stage == "train" else again["stages"][-1]["done_now"]
        assert 0 < done_now < {"train": 60}.get(stage, 12), (
            "what was committed is done again, or nothing was left to do"
        )
        assert committed(folder) == committed(finished.workspace.folder(stage))


@pytest.mark.slow
def test_a_folder_of_other_work_is_left_alone(holding: Callable[..., Workspace]) -> None:
    workspace = holding("download", "embed", "train")
    for name in STAGE_FOLDERS.values():
        folder = workspace.path / f"taken/{name}"
        folder.mkdir(parents=True)
        (folder / "thesis.txt").write_text("years of work\n")
    (workspace.path / "a_file").write_text("no folder\n")
    commands = {
        "images": ("download", "urls.parquet", "--images"),
        "embeddings": ("embed", "--model", "priorkit:demo", "--embeddings"),
        "prior": ("train", "recipe.yaml", "--prior"),
        "evaluation": ("evaluate", "--evaluation"),
    }
    held = "holds other work (1 files, such as 'thesis.txt') and no manifest.json"
    result = "holds the result of `priorkit "
    cases = [((*command, f"taken/{name}"), f"taken/{name} {held}") for name, command in commands.items()]
    for name, other in {"images": "prior", "embeddings": "images", "prior": "embeddings"}.items():
        cases.append(((*commands[name], f"data/{other}"), f"data/{other} {result}"))
    cases.append(((*commands["prior"], "data/images", "--overwrite"), f"data/images {result}"))
    recipe = ("run", "recipe.yaml", "--set")
    workspace.refuses_each([
        *cases,
        ((*commands["images"], "taken/images", "--overwrite"), held),
        ((*commands["images"], "a_file"), "a_file is a file; name a folder"),
        ((*recipe, "folders.evaluation=taken/evaluation"), "taken/evaluation holds other work"),
        ((*recipe, "folders.prior=data/images"), "each stage needs a folder of its own"),
        (("embed", "data/embeddings", "--embeddings", "new"), "name the folder of downloaded images"),
        (("train", "recipe.yaml", "--embeddings", "data/images"), "not by `priorkit embed`"),
    ])  # fmt: skip


@pytest.mark.slow
def test_changed_settings_are_refused_and_named(holding: Callable[..., Workspace]) -> None:
    workspace = holding()
    differences = {
        "download.image_size=48": "image_size: 32 -> 48",
        "embed.batch_size=3": "batch_size: 2 -> 3",
        "train.optimiser.learning_rate=0.5": "train.optimiser.learning_rate: 0.0003 -> 0.5",
        "read.test_fraction=0.3": "read.test_fraction: 0.2 -> 0.3",
    }
    run = ("run", "recipe.yaml", "--set")
    errors = workspace.refuses_each([((*run, setting), named) for setting, named in differences.items()])
    for setting, error in zip(differences, errors, strict=True):
        assert "--overwrite" in error
        assert ("--prior NEW" if setting.startswith(("train.", "read.")) else "another folder") in error
    changed = pq.read_table(workspace.path / "urls.parquet").to_pylist()
    changed[3]["caption"] = "another caption"
    pq.write_table(pa.Table.from_pylist(changed), workspace.path / "urls.parquet")
    workspace.refuses("run", "recipe.yaml", named="was downloaded from another list")


def test_settings_that_change_no_byte_may_change(holding: Callable[..., Workspace]) -> None:
    workspace = holding()
    settings = ("download.concurrency=3", "embed.decode_threads=1", "train.checkpoint_every=7")
    summary = workspace.json("run", "recipe.yaml", *(word for setting in settings for word in ("--set", setting)))
    assert [stage["done_now"] for stage in summary["stages"]] == [0, 0, 0, 0]


@pytest.mark.slow
def test_overwrite_starts_anew(holding: Callable[..., Workspace], finished: Finished) -> None:
    workspace = holding()
    changed = ("run", "recipe.yaml", "--set", "train.steps=20", "--set", "download.rows_per_shard=40", "--overwrite")
    summary = workspace.json(*changed)
    assert [stage["done_now"] for stage in summary["stages"]][:3] == [3, 3, 20]
    workspace.run("run", "recipe.yaml", "--overwrite")
    assert workspace.committed() == finished.workspace.committed()


def test_a_folder_in_use_is_left_to_its_writer(holding: Callable[..., Workspace]) -> None:
    workspace = holding("download", "embed")
    in_use = "another priorkit process is writing here; wait for it or use another folder"
    with (workspace.folder("embed") / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        workspace.refuses("run", "recipe.yaml", named=in_use)


def test_two_runs_at_once_on_one_folder(workspace: Workspace, finished: Finished, gate: Gate) -> None:
    gate.close_after(25)
    first = workspace.start("run", "recipe.yaml", "--until", "embed")
    try:
        gate.wait_until_held()
        second = workspace.run("run", "recipe.yaml", "--until", "embed", code=1)
    finally:
        gate.open()
    assert "another priorkit process is writing here" in second.stderr
    _, error = first.communicate(timeout=HANG_SECONDS)
    assert first.returncode == 0, error
    assert committed(workspace.folder("download")) == committed(finished.workspace.folder("download"))


def test_an_interrupted_download_goes_on(workspace: Workspace, finished: Finished, gate: Gate) -> None:
    command = ("run", "recipe.yaml", "--until", "download")
    records = workspace.folder("download") / "shards"
    for number in (signal.SIGINT, signal.SIGTERM):
        before = len(list(records.glob("*.json")))
        gate.close_after(20)  # two shards, since no more than one is fetched ahead
        process = workspace.start(*command)
        try:
            wait_for(lambda before=before: len(list(records.glob("*.json"))) > before)  # type: ignore[misc]
            gate.wait_until_held()
            stop(process, number)
        finally:
            gate.open()
    left = 12 - len(list(records.glob("*.json")))
    assert 0 < left < 11
    assert workspace.json(*command)["stages"][0]["done_now"] == left
    assert workspace.committed("download") == finished.workspace.committed("download")


def test_an_interrupted_embedding_goes_on(holding: Callable[..., Workspace], finished: Finished) -> None:
    workspace = holding("download")
    command = ("run", "recipe.yaml", "--until", "embed")
    records = workspace.folder("embed") / "shards"
    for number in (signal.SIGINT, signal.SIGTERM):
        before = len(list(records.glob("*.json")))
        process = workspace.start(*command)
        wait_for(lambda process=process, before=before: len(list(records.glob("*.json"))) > before)
        process.send_signal(signal.SIGSTOP)  # frozen, so that it cannot end before the signal arrives
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        wait_for_stop(process)
        assert not list(workspace.folder("embed").rglob("*tmp"))
    left = 12 - len(list(records.glob("*.json")))
    assert left > 0
    assert workspace.json(*command)["stages"][1]["done_now"] == left
    assert workspace.committed("embed") == finished.workspace.committed("embed")


def test_an_interrupted_training_goes_on(holding: Callable[..., Workspace], finished: Finished) -> None:
    workspace = holding("embed")
    state = workspace.folder("train") / "state"
    for number in (signal.SIGINT, signal.SIGTERM):
        before = names(state)
        process = workspace.start("train", "recipe.yaml")
        wait_for(lambda before=before: bool(names(state) - before))
        process.send_signal(signal.SIGSTOP)  # frozen, so that it cannot end before the signal arrives
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        said = wait_for_stop(process)
        step = int(said.partition("stopped after step ")[2].partition(" ")[0])
        assert max(names(state)) == f"step_{step:09d}.safetensors"
        assert 0 < step < 60
    assert workspace.json("train", "recipe.yaml")["done_now"] == 60 - step
    assert workspace.committed("train") == finished.workspace.committed("train")
    assert workspace.last_checkpoint() == finished.workspace.last_checkpoint()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.safetensors")}


def test_a_manifest_that_points_elsewhere_is_refused(holding: Callable[..., Workspace]) -> None:
    workspace = holding("download")
    (workspace.path / "precious.txt").write_text("not to be deleted\n")
    path = workspace.folder("download") / "manifest.json"
    manifest = json.loads(path.read_text())
    record = manifest["shards"]["00000"]
    record["files"]["../../precious.txt"] = record["files"].pop("00000.tar")
    path.write_text(json.dumps(manifest))
    named = "'../../precious.txt' is not a plain relative name"
    commands = (("inspect", "data/images"), ("run", "recipe.yaml"), ("run", "recipe.yaml", "--overwrite"))
    workspace.refuses_each([(command, named) for command in commands])
    path.write_text(path.read_text()[:-40])
    workspace.refuses("run", "recipe.yaml", named="manifest.json is not JSON")
