"""The command `convert`: its options, its output, and its messages about mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from priorkit.prior.interchange.load import load_prior
from priorkit.prior.network.settings import NetworkSettings

from ..interchange.diffusers.folders import write_pipeline
from .running import FAST, good, refused, write_prior


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


def test_convert_a_pipeline_of_diffusers(exported: Path, tiny_clip: Path) -> None:
    write_pipeline(exported / "pipeline")
    good("convert", "pipeline", "ours", "--clip", f"local-dir:{tiny_clip}")
    config = load_prior("ours").config
    assert config.clip_settings == {"model": f"local-dir:{tiny_clip}", "pretrained": None}
    assert (config.network.family, config.diffusion.clip_sample_range) == ("prior-transformer", 5.0)
    assert "config= belongs to checkpoints" in refused("convert", "pipeline", "a", "--config", "theirs.json")
    assert "clip= belongs to checkpoints (.pth or .pt) and folders of diffusers" in refused(
        "convert", "ours", "a", "--clip", f"local-dir:{tiny_clip}"
    )


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


def test_convert_overwrites_only_on_request(exported: Path) -> None:
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


def test_control_characters_in_names_do_not_reach_the_terminal(exported: Path) -> None:
    said = refused("convert", "\x1b[2J.pth", "out", "--config", "theirs.json")
    assert "\x1b" not in said
    assert "\\x1b[2J.pth: no such file" in said
