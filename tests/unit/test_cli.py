"""The command line: help, examples, defaults, and exit codes of commands that need no data."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from priorkit import __version__
from priorkit.cli import app
from priorkit.pipeline.adopt.settings import AdoptSettings
from priorkit.pipeline.clip.settings import ClipSettings
from priorkit.pipeline.compute.settings import ComputeSettings
from priorkit.pipeline.config import FolderSettings
from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.prior.decode.settings import DecodeSettings
from priorkit.prior.model.prior import Prior
from priorkit.prior.sampling.settings import SampleSettings
from priorkit.recipes.recipe import DEMO_PORT

PRIORKIT = str(Path(sys.executable).parent / "priorkit")
COMMANDS = [
    "download", "embed", "adopt", "inspect", "train", "evaluate", "compare", "report", "sample", "decode", "convert",
    "export", "run", "status", "demo", "doctor",
]  # fmt: skip
FOLDERS = FolderSettings()

DEFAULTS = {
    ("download", "images"): FOLDERS.images,
    ("download", "url_column"): DownloadSettings().url_column,
    ("download", "caption_column"): DownloadSettings().caption_column,
    ("download", "image_size"): DownloadSettings().image_size,
    ("download", "workers"): "this process",
    ("embed", "images"): FOLDERS.images,
    ("embed", "embeddings"): FOLDERS.embeddings,
    ("embed", "model"): ClipSettings().model,
    ("embed", "pretrained"): ClipSettings().pretrained,
    ("embed", "batch_size"): EmbedSettings().batch_size,
    ("embed", "device"): EmbedSettings().device,
    ("embed", "workers"): "this process",
    ("adopt", "source"): "the one named like text",
    ("adopt", "target"): "the one named like images",
    ("adopt", "metadata"): "the tables in SRC",
    ("adopt", "key_column"): "key, uid, id ...",
    ("adopt", "caption_column"): "caption, text ...",
    ("adopt", "rows_per_shard"): AdoptSettings(not_clip="x").rows_per_shard,
    ("adopt", "workers"): "this process",
    ("train", "workers"): "this process",
    ("train", "embeddings"): FOLDERS.embeddings,
    ("train", "prior"): FOLDERS.prior,
    ("evaluate", "prior"): FOLDERS.prior,
    ("evaluate", "embeddings"): FOLDERS.embeddings,
    ("evaluate", "evaluation"): FOLDERS.evaluation,
    ("evaluate", "weights"): "evaluate.weights",
    ("report", "evaluation"): FOLDERS.evaluation,
    ("report", "prior"): "where it was",
    ("report", "embeddings"): "where they were",
    ("report", "images"): FOLDERS.images,
    ("report", "output"): "EVALUATION.html",
    ("sample", "output"): "samples.npy",
    ("sample", "num_candidates"): 2,
    ("sample", "guidance_scale"): SampleSettings().guidance_scale,
    ("sample", "steps"): SampleSettings().steps,
    ("sample", "sampler"): SampleSettings().sampler,
    ("sample", "seed"): 0,
    ("sample", "device"): "auto",
    ("sample", "dtype"): "float32",
    ("sample", "guidance"): SampleSettings().guidance,
    ("sample", "weights"): "ema",
    ("decode", "target"): "the file's",
    ("decode", "output"): "pictures.png",
    ("decode", "seed"): DecodeSettings().seed,
    ("decode", "device"): DecodeSettings().device,
    ("decode", "dtype"): DecodeSettings().dtype,
    ("decode", "steps"): "the pipeline's",
    ("decode", "guidance_scale"): "the pipeline's",
    ("decode", "size"): "the pipeline's",
    ("decode", "batch_size"): "4",
    ("decode", "prompts"): "the decoder's",
    ("decode", "noise_level"): "0",
    ("convert", "weights"): "ema",
    ("export", "format"): "diffusers",
    ("export", "dtype"): "float32",
    ("export", "weights"): "ema",
    ("evaluate", "workers"): "this process",
    ("run", "start"): "the recipe's",
    ("run", "until"): "evaluate",
    ("run", "workers"): "the recipe's",
    ("status", "recipe"): "default folders",
    ("copy", "destination"): ".",
    ("from-dalle2", "destination"): "CONFIG.yaml, in this folder",
    ("demo", "folder"): "data/demo",
    ("demo", "port"): str(DEMO_PORT),
}
"""Defaults that the help must show, from the settings and functions that define them."""


def walk(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, (*words, name))


EVERY = dict(walk(get_command(app)))
LEAVES = {words: command for words, command in EVERY.items() if not hasattr(command, "commands")}


def help_of(words: tuple[str, ...]) -> str:
    result = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    return result.output


def test_the_commands_are_complete() -> None:
    of_recipes = {("recipes", name) for name in ("list", "copy", "validate", "from-dalle2")}
    assert set(LEAVES) == {(name,) for name in COMMANDS} | of_recipes


@pytest.mark.parametrize("words", sorted(EVERY), ids=" ".join)
def test_help_describes_the_command_and_each_parameter(words: tuple[str, ...]) -> None:
    text = help_of(words)
    assert text.startswith("Usage: ")
    assert len(text.split("\n\n")[1].strip()) > 20
    for parameter in EVERY[words].params:
        assert parameter.help, f"{words}: {parameter.name} has no help"


@pytest.mark.parametrize("words", sorted(set(LEAVES) | {()}), ids=" ".join)
def test_help_contains_an_example_that_parses(words: tuple[str, ...]) -> None:
    examples = re.findall(r"^ *Example: (.+)$", help_of(words), re.MULTILINE)
    assert len(examples) == 1
    program, *arguments = shlex.split(examples[0])
    assert program == "priorkit"
    command, named = EVERY[()], []
    while hasattr(command, "commands"):
        named.append(arguments.pop(0))
        command = command.commands[named[-1]]
    assert words in ((), tuple(named))
    context = command.make_context(" ".join(named), arguments)  # raises on anything that does not parse
    assert context.params


def test_help_shows_the_defaults_that_apply() -> None:
    shown = {}
    for words, command in LEAVES.items():
        text = " ".join(help_of(words).split())
        for parameter in command.params:
            by_hand = isinstance(getattr(parameter, "show_default", None), str)
            if by_hand or not (parameter.default is None or parameter.default is False):
                shown[words[-1], parameter.name] = parameter.show_default if by_hand else str(parameter.default)
                value = shown[words[-1], parameter.name]
                assert re.search(rf"\[default: \(?{re.escape(value)}\)?", text), f"{words}: {parameter.name}={value}"
    assert shown == {name: str(value) for name, value in DEFAULTS.items()}


EXPANDED_BY_SETTINGS = {("embed", "model"), ("embed", "pretrained"), ("convert", "clip_pretrained")}
"""Options whose values go into settings that expand them."""
NO_PATHS = {
    "settings", "function_version", "overwrite", "limit", "retry_failed", "dry_run", "as_json", "start", "url_column",
    "verify_hash", "name", "weights",
}  # fmt: skip
"""Other parameters whose help mentions files or folders."""


def test_every_path_is_expanded() -> None:
    paths = re.compile(r"\b(folders?|file|json|list of urls|\.pth|page to write|where|yaml)\b", re.IGNORECASE)
    for words, command in LEAVES.items():
        for parameter in command.params:
            is_path = paths.search(parameter.help or "") and parameter.name not in NO_PATHS
            if is_path and (words[-1], parameter.name) not in EXPANDED_BY_SETTINGS:
                assert parameter.callback is not None, f"{words}: {parameter.name}: {parameter.help}"


def test_the_default_is_to_work_in_this_process() -> None:
    assert ComputeSettings().backend == "local"


@pytest.mark.parametrize(
    "command", [["download", "urls.csv"], ["embed"], ["train", "demo"], ["evaluate"], ["run", "demo"]]
)
def test_the_option_workers_selects_ray(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--workers` sets `compute.backend` and `compute.workers` in every stage, and is validated with them."""
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(app, [*command, "--workers", "0"])
    assert refused.exit_code == 1
    assert "compute.workers" in refused.stderr
    taken = CliRunner().invoke(app, [*command, "--workers", "2", "--set", "compute.min_workers=3"])
    assert "compute.min_workers=3 is more than compute.workers=2" in taken.stderr


def test_sample_has_the_same_defaults_as_the_function() -> None:
    parameters = inspect.signature(Prior.sample).parameters
    for name in ("guidance_scale", "guidance", "steps", "sampler", "seed"):
        assert parameters[name].default == DEFAULTS["sample", name]


def test_every_stage_has_the_common_options() -> None:
    flags = {words: {flag for p in command.params for flag in p.opts} for words, command in LEAVES.items()}
    for stage in ("download", "embed", "train", "evaluate", "run"):
        assert {"--dry-run", "--limit", "--json", "--overwrite", "--set"} <= flags[(stage,)], stage
    without_json = {words for words, given in flags.items() if "--json" not in given}
    assert without_json == {("recipes", "copy")}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["no-such-command"], "no-such-command"),
        (["download"], "urls"),
        (["download", "urls.parquet", "--no-such-option"], "--no-such-option"),
        (["download", "urls.parquet", "--limit", "0"], "'--limit'"),
        (["train", "demo", "--limit", "-3"], "'--limit'"),
        (["download", "urls.parquet", "--image-size", "big"], "'--image-size'"),
        (["sample"], "prior"),
        (["sample", "data/prior", "a cat", "--steps", "0"], "'--steps'"),
        (["demo", "--port", "70000"], "'--port'"),
        (["recipes", "no-such-command"], "no-such-command"),
    ],
)
def test_a_parse_error_exits_with_2(arguments: list[str], named: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert named in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["run", "demo", "--set", "train.steps"], "--set train.steps: expected KEY=VALUE"),
        (["run", "demo", "--set", "=3"], "--set =3: expected KEY=VALUE"),
        (["run", "demo", "--set", "train.steps=[1"], "the value is not YAML"),
        (["run", "demo", "--set", "train.step=3"], "train.step: unknown key; did you mean 'steps'?"),
        (["run", "demo", "--set", "train.steps.more=3"], "steps is a value"),
        (["run", "demo", "--set", "train.steps=many"], "train.steps"),
        (["run", "demo", "--set", "traine.steps=3"], "traine: unknown key; did you mean 'train'?"),
        (["run", "demo", "--until", "cook"], "no stage 'cook'; there are download, embed, train, evaluate"),
        (["run", "no_such_recipe.yaml"], "no_such_recipe.yaml: no such recipe file"),
        (["train", "no_such_recipe.yaml"], "no_such_recipe.yaml: no such recipe file"),
        (["recipes", "validate", "no_such_recipe.yaml"], "no_such_recipe.yaml: no such recipe file"),
        (
            ["recipes", "copy", "nothing"],
            "no recipe 'nothing'; there are cc12m, custom, demo, ",
        ),
        (["sample", "data/prior", "a cat", "--output", "samples.txt"], "--output samples.txt: end it with .npy"),
        (["sample", "data/prior", "a cat"], "no prior is there"),
        (["sample", "data/prior"], "give one of: captions, --prompts FILE, --embeddings FOLDER"),
        (["decode", "a.safetensors", "--pipeline", "x/y"], "a.safetensors: no such file; `priorkit sample --for"),
        (["decode", "a.safetensors", "--pipeline", "x/y", "--output", "a.jpg"], "end it with .png for one grid"),
        (["decode", "a.safetensors", "--pipeline", "x/y", "--size", "7"], "size"),
        (["decode", "a.safetensors", "--pipeline", "x/y", "--dtype", "int8"], "dtype"),
        (["inspect", "nothing/here"], "nothing/here"),
        (["download", "nothing.parquet"], "nothing.parquet: no such file or folder"),
        (["download", "urls.parquet", "--retry-failed", "--overwrite"], "use one of them"),
        (["embed", "nothing"], "nothing"),
        (["embed", "--device", "tpu"], "embed.device"),
        (["download", "urls.parquet", "--set", "compute.workers=2"], "compute.backend=ray"),
    ],
)
def test_a_wrong_value_exits_with_1_and_names_it(
    arguments: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    assert named in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("a" * 300, "is longer than the file system takes"),
        ("/dev/null/x", "error: "),
        ("/", "error: /: not a recipe file"),
    ],
)
def test_a_path_that_no_file_can_have_is_an_error_of_one_line(path: str, named: str) -> None:
    result = CliRunner().invoke(app, ["recipes", "validate", path])
    assert (result.exit_code, result.stdout) == (1, "")
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith(named) if named.startswith("error") else named in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["猫", "🐈", "no", "null", "a: [b"])
def test_the_value_of_an_option_is_plain_text(name: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"url,{name}\nhttp://h/0.jpg,c\n", encoding="utf-8")
    arguments = ["download", str(tmp_path / "list.csv"), "--caption-column", name, "--dry-run", "--json"]
    result = CliRunner().invoke(app, [*arguments, "--images", str(tmp_path / "images")])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["pending_rows"] == 1


def test_the_version_is_printed() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"priorkit {__version__}\n")


def test_recipes_are_listed_copied_and_validated(tmp_path: Path) -> None:
    listed = CliRunner().invoke(app, ["recipes", "list", "--json"])
    described = json.loads(listed.output)
    assert {"custom", "demo"} <= set(described)
    assert all(len(text) > 20 for text in described.values())
    assert all(name in CliRunner().invoke(app, ["recipes", "list"]).output for name in described)
    for name in described:
        copied = CliRunner().invoke(app, ["recipes", "copy", name, str(tmp_path)])
        assert (copied.exit_code, copied.output.strip()) == (0, f"wrote {tmp_path / name}.yaml")
        again = CliRunner().invoke(app, ["recipes", "copy", name, str(tmp_path)])
        assert again.exit_code == 1
        assert "exists already" in again.stderr
        assert [path.name for path in tmp_path.glob("*tmp")] == []
        valid = CliRunner().invoke(app, ["recipes", "validate", str(tmp_path / f"{name}.yaml"), "--json"])
        by_name = CliRunner().invoke(app, ["recipes", "validate", name, "--json"])
        assert (valid.exit_code, by_name.exit_code) == (0, 0)
        assert json.loads(valid.output) == json.loads(by_name.output)


def test_validate_prints_the_complete_recipe(tmp_path: Path) -> None:
    printed = CliRunner().invoke(app, ["recipes", "validate", "demo", "--set", "train.steps=7"])
    text, _, last = printed.output.rstrip().rpartition("\n")
    assert last == "demo: valid"
    (tmp_path / "full.yaml").write_text(text)
    assert yaml.safe_load(text)["train"]["steps"] == 7
    again = CliRunner().invoke(app, ["recipes", "validate", str(tmp_path / "full.yaml"), "--json"])
    assert json.loads(again.output) == yaml.safe_load(text)


def test_without_a_command_the_help_is_shown() -> None:
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    assert "Commands:" in result.output


def test_the_installed_command_runs_this_version() -> None:
    version = subprocess.run([PRIORKIT, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout == f"priorkit {__version__}\n"
    wrong = subprocess.run([PRIORKIT, "run", "demo", "--set", "train.step=3"], capture_output=True, text=True)
    assert wrong.returncode == 1
    assert wrong.stderr == "error: demo with --set: train.step: unknown key; did you mean 'steps'?\n"


def test_a_terminal_without_utf_8_shows_escapes(tmp_path: Path) -> None:
    shown = subprocess.run(
        [PRIORKIT, "status", "--set", "folders.images=\u6570\u636e"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "200"},
    )  # fmt: skip
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "\\u6570" in shown.stdout


@pytest.mark.parametrize(
    ("command", "override", "read"),
    [
        (["download", "urls.csv"], "train.steps=3", "download, compute"),
        (["embed"], "download.image_size=3", "embed, compute"),
        (["train", "custom"], "evaluate.draws=3", "train, read, folders, embed, compute"),
        (["evaluate"], "train.steps=5", "evaluate, read, compute"),
    ],
)
def test_a_setting_that_a_command_does_not_read_is_refused(command: list[str], override: str, read: str) -> None:
    result = CliRunner().invoke(app, [*command, "--set", override])
    assert result.exit_code == 1
    assert f"--set {override}: this command reads {read} only" in result.stderr
