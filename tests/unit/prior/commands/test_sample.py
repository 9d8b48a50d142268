"""The commands `sample` and `convert`: their options, what they print, and what they say of mistakes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from typer.testing import CliRunner, Result

from priorkit.cli import app
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.prior.interchange.load import convert, load_prior
from priorkit.prior.model.config import PriorConfig, build_network, build_normaliser
from priorkit.prior.model.folder import save_prior
from priorkit.prior.model.prior import Prior
from priorkit.prior.network.settings import NetworkSettings
from priorkit.prior.objective.settings import DiffusionSettings

FAST = ("--steps", "3", "--device", "cpu")


def write_prior(folder: Path, clip_settings: dict[str, Any], max_text_len: int = 0, **config: Any) -> Prior:
    settings = PriorConfig(
        **{
            "embed_dim": 16,
            "token_width": 16 if max_text_len else None,
            "network": NetworkSettings(width=16, depth=1, heads=2, dim_head=8, max_text_len=max_text_len),
            "diffusion": DiffusionSettings(timesteps=10),
            "clip": {},
            "clip_settings": clip_settings,
            **config,
        }
    )
    torch.manual_seed(0)
    prior = Prior(settings, build_network(settings), build_normaliser(settings))
    save_prior(Store(str(folder)).create, settings, prior.network, prior.normaliser)
    return prior


@pytest.fixture
def here(tmp_path: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two priors of the tiny CLIP, and one of no CLIP."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    clip = {"model": f"local-dir:{tiny_clip}", "pretrained": None}
    write_prior(tmp_path / "prior", clip)
    write_prior(tmp_path / "with_states", clip, max_text_len=4)
    write_prior(tmp_path / "no_clip", {})
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def good(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def refused(*arguments: object) -> str:
    """What is said of a mistake: one line to standard error, after progress if any; no traceback, exit code 1."""
    result = run(*arguments)
    assert result.exit_code == 1, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    *before, last = result.stderr.splitlines()
    assert last.startswith("error: ")
    assert all(line.startswith("sample ") for line in before)
    return last


@pytest.mark.parametrize("prior", ["prior", "with_states"])
def test_captions(prior: str, here: Path) -> None:
    shown = good("sample", prior, "a red square", "", *FAST).stdout
    found = np.load(here / "samples.npy", allow_pickle=False)
    assert (found.shape, found.dtype) == ((2, 16), np.float32)
    expected = load_prior(prior).sample(["a red square", ""], steps=3, num_candidates=2)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
    assert "a red square" in shown
    assert "mean cosine to the text: " in shown
    assert "wrote samples.npy: float32 [2, 16]" in shown
    assert sorted(path.name for path in here.iterdir()) == ["no_clip", "prior", "samples.npy", "with_states"]


def test_every_option_reaches_the_sampler(here: Path) -> None:
    options = (
        *("--num-candidates", "3", "--guidance-scale", "1.5", "--guidance", "text", "--sampler", "ddpm"),
        *("--seed", "5", "--dtype", "bfloat16", "--steps", "4", "--device", "cpu"),
    )
    good("sample", "prior", "a cat", "--output", "out/a.safetensors", *options)
    found = safetensors.numpy.load_file(here / "out/a.safetensors")["image_embed"]
    expected = load_prior("prior", dtype="bfloat16").sample(
        ["a cat"], num_candidates=3, guidance_scale=1.5, guidance="text", sampler="ddpm", seed=5, steps=4
    )
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_the_json_of_captions(here: Path) -> None:
    captions = ["a cat", "\x1b[31m\u202e[bold]x"]
    result = good("sample", "prior", *captions, "--json", *FAST)
    assert result.stdout.isascii()
    assert "\x1b" not in result.stdout
    found = json.loads(result.stdout)
    assert (found["output"], found["shape"], found["labels"]) == ("samples.npy", [2, 16], captions)
    assert len(found["cosine_to_text"]) == 2
    assert found["mean_cosine_to_text"] == pytest.approx(sum(found["cosine_to_text"]) / 2)


def test_hostile_captions_steer_no_terminal(here: Path) -> None:
    hostile = ["\x1b[2J\x1b]0;title\x07", "[bold red]x[/bold red] [/]", "\u202ecba\u2066", "a\tb\u2028c", "\x9b31m"]
    (here / "a.txt").write_text("\n".join(caption for caption in hostile), encoding="utf-8")
    for arguments in (hostile, ["--prompts", "a.txt"]):
        shown = good("sample", "prior", *arguments, *FAST).output
        steering = {c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n"}
        assert not steering
        assert "[bold red]x[/bold red] [/]" in shown
        assert "\\x1b[2J" in shown


def test_a_prompt_file(here: Path) -> None:
    lines = [f"caption number {number}" for number in range(70)]
    lines[3] = ""
    (here / "a.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    shown = good("sample", "prior", "--prompts", "a.txt", *FAST).stdout
    assert "samples (first 20 of 70)" in shown
    assert "caption number 19" in shown
    assert "caption number 20" not in shown
    found = np.load(here / "samples.npy")
    good("sample", "prior", *lines, "--output", "b.npy", *FAST)
    assert np.array_equal(np.load(here / "b.npy"), found)
    one = good("sample", "prior", lines[0], "--output", "c.npy", *FAST)
    assert "caption number 0" in one.stdout
    np.testing.assert_allclose(np.load(here / "c.npy"), found[:1], atol=1e-5)


def test_an_empty_prompt_file_makes_an_empty_array(here: Path) -> None:
    (here / "a.txt").touch()
    assert "wrote samples.npy: float32 [0, 16]" in good("sample", "prior", "--prompts", "a.txt", *FAST).stdout
    assert np.load(here / "samples.npy").shape == (0, 16)
    found = json.loads(good("sample", "prior", "--prompts", "a.txt", "--json", *FAST).stdout)
    assert (found["shape"], found["mean_cosine_to_text"]) == ([0, 16], None)


def test_an_array_of_embeddings(here: Path) -> None:
    embeds = np.random.default_rng(0).standard_normal((5, 16)).astype(np.float16)
    np.save(here / "texts.npy", embeds)
    shown = good("sample", "no_clip", "--embeddings", "texts.npy", *FAST).stdout
    assert "row 4" in shown
    expected = load_prior("no_clip").sample(text_embed=torch.from_numpy(embeds), steps=3, num_candidates=2)
    np.testing.assert_allclose(np.load(here / "samples.npy"), expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("prior", ["prior", "with_states", "no_clip"])
def test_a_folder_of_embeddings(prior: str, here: Path, embeddings_folder: Path) -> None:
    shown = good("sample", prior, "--embeddings", embeddings_folder, "--output", "a.npy", *FAST).stdout
    assert "samples (first 20 of 60)" in shown
    assert "square number 0" in shown
    dataset, loaded = EmbeddingDataset(str(embeddings_folder)), load_prior(prior)
    batch = dataset.take(np.arange(60), loaded.token_states_used)
    states = None if batch.token_states is None else torch.from_numpy(batch.token_states)
    expected = loaded.sample(
        text_embed=torch.from_numpy(batch.text_embed), token_states=states, steps=3, num_candidates=2
    )
    np.testing.assert_allclose(np.load(here / "a.npy"), expected.numpy(), atol=1e-5)


def test_stored_embeddings_need_no_clip(here: Path, embeddings_folder: Path) -> None:
    """Neither is one looked for nor is open_clip imported."""
    np.save(here / "texts.npy", np.ones((2, 16), np.float32))
    code = """
import sys
from priorkit.cli import app
for source in sys.argv[1:]:
    for prior in ("no_clip", "prior"):
        app(["sample", prior, "--embeddings", source, "--steps", "2"], standalone_mode=False)
assert not {"open_clip", "ray", "img2dataset"} & sys.modules.keys()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(embeddings_folder), "texts.npy"], cwd=here, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote samples.npy") == 4


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["a cat", "--prompts", "a.txt"], ["a cat", "--embeddings", "texts.npy"],
        ["--prompts", "a.txt", "--embeddings", "texts.npy"], ["a", "--prompts", "a.txt", "--embeddings", "texts.npy"],
    ],
)  # fmt: skip
def test_exactly_one_source(arguments: list[str], here: Path) -> None:
    (here / "a.txt").write_text("a cat\n")
    np.save(here / "texts.npy", np.ones((2, 16), np.float32))
    assert "give one of: captions, --prompts FILE, --embeddings FOLDER" in refused("sample", "prior", *arguments)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nothing", "a cat"], "nothing: no prior is there"),
        (["nothing.pth", "a cat"], "nothing.pth: give config="),
        (["nothing.pth", "a cat", "--config", "laion-model-card"], "nothing.pth: no such file"),
        (["prior", "a cat", "--config", "laion-model-card"], "config= belongs to checkpoints"),
        (["prior", "a cat", "--weights", "online"], "weights='online' are in a training's checkpoints"),
        (["prior", "a cat", "--function-version", "1.15.6"], "function_version= belongs to checkpoints"),
        (["no_clip", "a cat"], "does not say which CLIP it belongs to"),
        (["prior", "a cat", "--output", "a.txt"], "--output a.txt: end it with .npy or .safetensors"),
        (["prior", "a cat", "--output", "folder.npy"], "--output folder.npy: is a folder"),
        (["prior", "a cat", "--device", "tpu"], "--device=tpu: known are auto, cpu and cuda"),
        (["prior", "a cat", "--dtype", "float16"], "dtype='float16': known are float32, bfloat16"),
        (["prior", "a cat", "--steps", "11"], "steps=11: ddim samples this prior in 1 to 10 steps"),
        (["prior", "a cat", "--sampler", "euler"], "sampler"),
        (["prior", "a cat", "--guidance", "all"], "guidance"),
        (["prior", "a cat", "--guidance-scale", "-1"], "guidance_scale"),
        (["prior", "a cat", "--guidance-scale", "nan"], "guidance_scale"),
        (["prior", "--prompts", "no.txt"], "--prompts no.txt: no such file"),
        (["prior", "--prompts", "latin.txt"], "--prompts latin.txt: not UTF-8 text"),
        (["prior", "--prompts", "prior"], "--prompts prior: no such file"),
        (["prior", "--embeddings", "no.npy"], "--embeddings no.npy: no such file"),
        (["prior", "--embeddings", "narrow.npy"], "narrow.npy: holds embeddings of 5, this prior takes 16"),
        (["prior", "--embeddings", "integers.npy"], "integers.npy: holds int64 of shape [2, 16], floats [N, D]"),
        (["prior", "--embeddings", "nan.npy"], "nan.npy: row 1 is not finite"),
        (["with_states", "--embeddings", "good.npy"], "good.npy: this prior takes token states too"),
        (["prior", "--embeddings", "nothing"], "nothing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_named_and_leave_no_file(arguments: list[str], named: str, here: Path) -> None:
    (here / "latin.txt").write_bytes(b"caf\xe9\n")
    (here / "folder.npy").mkdir()
    arrays = {"narrow": np.ones((2, 5)), "integers": np.ones((2, 16), np.int64), "good": np.ones((2, 16))}
    arrays["nan"] = np.array([[1.0] * 16, [np.nan] * 16])
    for name, array in arrays.items():
        np.save(here / f"{name}.npy", array)
    before = sorted(here.rglob("*"))
    given = arguments if "--steps" in arguments else [*arguments, "--steps", "3"]
    assert named in refused("sample", *given)
    assert sorted(here.rglob("*")) == before


def test_another_clip_is_refused(here: Path, embeddings_folder: Path) -> None:
    identity = {"weights_sha256": "0" * 64, "dtype": "float32"}
    clip = load_prior("prior").config.clip_settings
    write_prior(here / "other", clip, clip=identity)
    assert "embedded by another CLIP" in refused("sample", "other", "--embeddings", embeddings_folder, *FAST)
    assert "has other weights than the one" in refused("sample", "other", "a cat", *FAST)
    assert not (here / "samples.npy").exists()


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_leaves_the_older_file(
    interrupt: type[BaseException], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good("sample", "prior", "a cat", *FAST)
    before = (here / "samples.npy").read_bytes()
    (here / "a.txt").write_text("a cat\n" * 100)
    inner, calls = Prior.sample, []

    def sample(self: Prior, *arguments: Any, **settings: Any) -> torch.Tensor:
        calls.append(settings.get("first"))
        if settings.get("first"):
            raise interrupt
        return inner(self, *arguments, **settings)

    monkeypatch.setattr(Prior, "sample", sample)
    result = run("sample", "prior", "--prompts", "a.txt", *FAST)
    assert calls[-1] == 64
    assert result.exit_code == (130 if interrupt is KeyboardInterrupt else 1)
    assert (here / "samples.npy").read_bytes() == before
    assert not [path for path in here.iterdir() if "tmp" in path.name]


@pytest.fixture
def exported(here: Path) -> Path:
    """A `.pth` and its JSON, without a CLIP, in the working directory."""
    convert("no_clip", "theirs.pth")
    return here


def test_convert_in_both_directions(exported: Path) -> None:
    shown = good("convert", "theirs.pth", "ours", "--config", "theirs.json").stdout
    assert shown == "wrote ours\n"
    for name in ("config.json", "model.safetensors"):
        assert (exported / "ours" / name).read_bytes() == (exported / "no_clip" / name).read_bytes()
    found = json.loads(good("convert", "ours", "new/again.pth", "--json").stdout)
    assert found == {"source": "ours", "destination": "new/again.pth"}
    assert (exported / "new/again.json").read_bytes() == (exported / "theirs.json").read_bytes()


def test_convert_names_the_clip(exported: Path, tiny_clip: Path) -> None:
    arguments = ("--config", "theirs.json", "--clip", f"local-dir:{tiny_clip}")
    good("convert", "theirs.pth", "ours", *arguments)
    assert load_prior("ours").config.clip_settings == {"model": f"local-dir:{tiny_clip}", "pretrained": None}
    good("sample", "ours", "a cat", *FAST)
    assert "does not say which CLIP" in refused("sample", "theirs.pth", "a cat", "--config", "theirs.json", *FAST)


def test_convert_takes_weights_and_version(exported: Path) -> None:
    content = torch.load("theirs.pth", weights_only=True)
    other = {name: value + 1 if name.startswith("net.") else value for name, value in content["model"].items()}
    other |= {name: value for name, value in content["model"].items() if "rotary" in name}
    torch.save({"model": other, "ema_model": content["model"]}, "unnamed.pth")
    assert "stores no version" in refused("convert", "unnamed.pth", "ours", "--config", "theirs.json")
    arguments = ("--config", "theirs.json", "--function-version", "1.14.0", "--weights")
    good("convert", "unnamed.pth", "ours", *arguments, "online")
    good("convert", "unnamed.pth", "average", *arguments, "ema")
    online, average = load_prior("ours"), load_prior("average")
    assert online.config.network.function_version == "1.14.0"
    assert torch.equal(online.network.query, average.network.query + 1)


def test_samples_of_a_checkpoint_are_those_of_the_converted(exported: Path) -> None:
    np.save("texts.npy", np.eye(3, 16, dtype=np.float32))
    good("sample", "theirs.pth", "--embeddings", "texts.npy", "--config", "theirs.json", *FAST)
    good("sample", "no_clip", "--embeddings", "texts.npy", "--output", "b.npy", *FAST)
    assert np.array_equal(np.load("samples.npy"), np.load("b.npy"))


def test_convert_overwrites_only_when_told(exported: Path) -> None:
    before = {path: path.read_bytes() for path in exported.rglob("*") if path.is_file()}
    assert "prior holds a prior" in refused("convert", "theirs.pth", "prior", "--config", "theirs.json")
    assert "theirs.pth exists" in refused("convert", "prior", "theirs.pth")
    assert {path: path.read_bytes() for path in exported.rglob("*") if path.is_file()} == before
    good("convert", "theirs.pth", "prior", "--config", "theirs.json", "--overwrite")
    assert load_prior("prior").config.clip_settings == {}
    good("convert", "prior", "theirs.pth", "--overwrite")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["theirs.pth", "out"], "theirs.pth: give config="),
        (["nothing.pth", "out", "--config", "theirs.json"], "nothing.pth: no such file"),
        (["folder.pth", "out", "--config", "theirs.json"], "folder.pth: a folder, not a checkpoint"),
        (["nothing", "out"], "nothing: no prior is there"),
        (["theirs.pth", "out", "--config", "nothing.json"], "config='nothing.json': neither a file nor one of laion"),
        (["theirs.pth", "out", "--config", "laion-model-card"], "its settings make"),
        (["theirs.pth", "out", "--config", "typo.json"], "net.dept: unknown key; did you mean 'depth'?"),
        (["theirs.pth", "out", "--config", "text.json"], "text.json: not JSON"),
        (
            ["theirs.pth", "out", "--config", "theirs.json", "--weights", "newest"],
            "weights='newest': known are ema and",
        ),
        (["theirs.pth", "out", "--config", "theirs.json", "--function-version", "9"], "'9' is not a release"),
        (["theirs.pth", "out", "--config", "theirs.json", "--function-version", "9.0"], "dalle2-pytorch 9.0: releases"),
        (
            ["theirs.pth", "out", "--config", "theirs.json", "--function-version", "0.23.10"],
            "lacks net.null_text_embed",
        ),
        (
            ["theirs.pth", "out", "--config", "theirs.json", "--clip-pretrained", "openai"],
            "--clip-pretrained: give --cl",
        ),
        (["theirs.pth", "out", "--config", "theirs.json", "--clip", "ViT-L-14"], "pretrained is needed for 'ViT-L-14'"),
        (
            ["theirs.pth", "out", "--config", "theirs.json", "--clip", "ViT-X", "--clip-pretrained", "a"],
            "no such model",
        ),
        (
            ["theirs.pth", "out", "--config", "theirs.json", "--clip", "local-dir:no"],
            "no holds no open_clip_config.json",
        ),
        (["prior", "out", "--config", "theirs.json"], "config= belongs to checkpoints"),
        (["cut.pth", "out", "--config", "theirs.json"], "cut.pth: cannot be read as a checkpoint; is the file whole?"),
        (["empty.pth", "out", "--config", "theirs.json"], "empty.pth: cannot be read as a checkpoint"),
        (["list.pth", "out", "--config", "theirs.json"], "list.pth: holds a list, not the dictionary of a checkpoint"),
        (["wide", "out.pth"], "dalle2-pytorch has no such prior: network.width=24 is not embed_dim=16"),
        (["prior", "two words.pth"], "name the file with letters, digits"),
        (["prior", "typo.json/out"], "is in the way"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_of_convert_are_named(arguments: list[str], named: str, exported: Path) -> None:
    settings = json.loads((exported / "theirs.json").read_text())
    settings["prior"]["net"]["dept"] = 3
    (exported / "typo.json").write_text(json.dumps(settings))
    (exported / "text.json").write_text("net: {}")
    (exported / "cut.pth").write_bytes((exported / "theirs.pth").read_bytes()[:5000])
    (exported / "empty.pth").touch()
    (exported / "folder.pth").mkdir()
    torch.save([1], "list.pth")
    network = NetworkSettings(width=24, depth=1, heads=2, dim_head=8)
    write_prior(exported / "wide", {}, network=network)
    before = sorted(exported.rglob("*"))
    assert named in refused("convert", *arguments)
    assert sorted(exported.rglob("*")) == before


class Marks:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        import os

        return os.mkdir, (self.path,)


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_hostile_checkpoint_runs_nothing(as_zip: bool, exported: Path) -> None:
    content = torch.load("theirs.pth", weights_only=True)
    torch.save({**content, "version": Marks(exported / "marker")}, "bad.pth", _use_new_zipfile_serialization=as_zip)
    for command in (("convert", "bad.pth", "out"), ("sample", "bad.pth", "a cat")):
        said = refused(*command, "--config", "theirs.json")
        assert "bad.pth: holds posix.mkdir, which is not among what a checkpoint may hold" in said
    assert not (exported / "marker").exists()
    assert not (exported / "out").exists()
    torch.load("bad.pth", weights_only=False)
    assert (exported / "marker").exists()  # it would have


def test_hostile_names_steer_no_terminal(exported: Path) -> None:
    said = refused("convert", "\x1b[2J.pth", "out", "--config", "theirs.json")
    assert "\x1b" not in said
    assert "\\x1b[2J.pth: no such file" in said


def test_the_array_may_be_remote(here: Path) -> None:
    import fsspec

    data = io.BytesIO()
    np.save(data, np.ones((2, 16), np.float32))
    fsspec.filesystem("memory").pipe({"/s/a.npy": data.getvalue(), "/s/a.txt": b"a cat\n"})
    good("sample", "no_clip", "--embeddings", "memory://s/a.npy", *FAST)
    assert np.load(here / "samples.npy").shape == (2, 16)
    good("sample", "prior", "--prompts", "memory://s/a.txt", *FAST)
    assert np.load(here / "samples.npy").shape == (1, 16)
