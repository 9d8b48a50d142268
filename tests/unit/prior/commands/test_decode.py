"""The command `decode`: its options, its output, and its messages. `decode/test_stage.py` has the pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from ....tiny_decoders import write_embeds, write_ip_adapter, write_pipeline
from .running import good, run


@pytest.mark.slow
def test_every_option_reaches_the_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_pipeline("stable-unclip", tmp_path / "decoder")
    write_embeds(tmp_path / "a.safetensors", "stable-unclip", rows=5)
    common = ("decode", "a.safetensors", "--pipeline", "decoder", "--steps", "1", "--device", "cpu")
    shown = good(*common, "--size", "32").stdout
    assert shown.endswith("wrote pictures.png: 5 pictures of 32 x 32 pixels\n")
    with Image.open("pictures.png") as grid:
        grid.load()
    alone = {}
    for number, options in enumerate(
        [
            (), ("--seed", "4"), ("--steps", "2"), ("--guidance-scale", "1"), ("--noise-level", "500"), ("--prompts",),
            ("--dtype", "bfloat16"),
        ]
    ):  # fmt: skip
        output = f"{number}/"
        result = good(*common, "--size", "32", "--limit", "1", "--output", output, "--json", *options)
        expected = {"output": output, "target": "stable-unclip", "pictures": 1, "size": 32, "notes": []}
        assert json.loads(result.stdout) == expected
        alone[options] = (tmp_path / output / "000000.png").read_bytes()
    assert len(set(alone.values())) == len(alone)
    good(*common, "--size", "32", "--limit", "1", "--output", "again/", "--for", "stable-unclip", "--batch-size", "1")
    assert (tmp_path / "again" / "000000.png").read_bytes() == alone[()]


@pytest.mark.slow
def test_an_ip_adapter_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODELS", str(tmp_path))
    write_pipeline("ip-adapter", tmp_path / "decoder")
    write_embeds(tmp_path / "a.safetensors", "ip-adapter", rows=2)
    write_ip_adapter(tmp_path / "ip.safetensors")
    common = ("decode", "a.safetensors", "--pipeline", "$MODELS/decoder", "--steps", "1", "--device", "cpu")
    good(*common, "--ip-adapter", "$MODELS/ip.safetensors")
    good(*common, "--ip-adapter", "ip.safetensors", "--output", "other.png")
    assert Path("pictures.png").read_bytes() == Path("other.png").read_bytes()
    assert "needs the adapter's weights" in run(*common).stderr


def test_mistakes_are_errors_of_a_few_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_embeds(tmp_path / "a.safetensors", "kandinsky-2.2")
    write_embeds(tmp_path / "unit.safetensors", "karlo", norm="unit")
    cases = [
        (("a.safetensors", "--for", "karlo"), "sampled for kandinsky-2.2, not karlo"),
        (("a.safetensors", "--for", "carlo"), "--for carlo: decode draws with kandinsky-2.2"),
        (("unit.safetensors",), "its embeddings have norm 'unit'"),
        (("a.safetensors", "--guidance-scale", "0.5"), "guidance_scale"),
        (("a.safetensors", "--steps", "0"), "steps"),
        (("a.safetensors", "--noise-level", "5"), "only stable-unclip adds noise"),
        (("a.safetensors", "--output", "a.webp"), "end it with .png"),
    ]
    for arguments, named in cases:
        result = run("decode", *arguments, "--pipeline", "nothing")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("error: ")
        assert named in " ".join(result.stderr.split())
        assert result.stderr.count("\n") <= 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "unit.safetensors"]
