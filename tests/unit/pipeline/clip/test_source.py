"""The source of a CLIP's weights, decided from its settings alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from priorkit.pipeline.clip.settings import ClipSettings, PreprocessSettings
from priorkit.pipeline.clip.source import ClipSource, clip_location, parse_source
from priorkit.pipeline.errors import InputError

from ....conftest import TINY_CLIP_CONFIG
from .conftest import CONFIG, TINY, WEIGHTS


def parse(settings: ClipSettings, *tags: str) -> ClipSource:
    """Parse with an open_clip that knows these tags."""
    return parse_source(settings, lambda model, name: name in tags)


def by_path(name: str) -> ClipSettings:
    return ClipSettings(model="ViT-B-32", pretrained=name)


def write(path: Path, content: bytes = b"weights") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_the_bundled_clip_is_a_folder_of_the_package() -> None:
    settings = ClipSettings(model="priorkit:demo")
    source = parse(settings)
    assert source.kind == "bundled"
    assert source.folder is not None
    assert source.folder.parts[-2:] == ("recipes", "demo")
    described = source.describe(settings)
    assert described["model"] == "priorkit:demo"
    assert list(described["files"]) == [CONFIG, WEIGHTS]


def test_a_local_folder_is_described_by_hashes_and_not_by_its_path(tmp_path: Path) -> None:
    config = json.dumps(TINY_CLIP_CONFIG).encode()
    write(tmp_path / "clip" / CONFIG, config)
    write(tmp_path / "clip" / "w.pt")
    settings = ClipSettings(model=f"local-dir:{tmp_path / 'clip'}", quick_gelu=True)
    source = parse(settings)
    assert source == ClipSource("folder", folder=tmp_path / "clip")
    assert source.describe(settings) == {
        "model": "local-dir",
        "files": {CONFIG: sha256(config), "w.pt": sha256(b"weights")},
        "quick_gelu": True,
    }


@pytest.mark.parametrize("model", ["local-dir:{}/clip", "local-dir:{}/absent", "priorkit:none"])
def test_a_folder_without_a_config_is_refused(model: str, tmp_path: Path) -> None:
    write(tmp_path / "clip" / "w.pt")
    with pytest.raises(InputError, match=rf"holds no {CONFIG}"):
        parse(ClipSettings(model=model.format(tmp_path)))


def test_a_file_is_described_with_the_config_beside_it(tmp_path: Path) -> None:
    settings = by_path(str(write(tmp_path / "w.pt")))
    source = parse(settings)
    assert source == ClipSource("file", file=tmp_path / "w.pt")
    assert source.describe(settings) == {"model": "ViT-B-32", "files": {"w.pt": sha256(b"weights")}}
    write(tmp_path / CONFIG, b"{}")
    assert source.describe(settings)["files"] == {CONFIG: sha256(b"{}"), "w.pt": sha256(b"weights")}


def test_a_tag_takes_precedence_over_a_file_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("openai"))
    settings = by_path("openai")
    assert parse(settings, "openai") == ClipSource("tag")
    assert parse(settings, "openai").describe(settings) == {"model": "ViT-B-32", "pretrained": "openai"}
    assert parse(settings) == ClipSource("file", file=Path("openai"))
    assert parse(by_path("./openai"), "./openai").kind == "file"


def test_a_missing_path_is_refused_and_a_missing_name_is_a_tag(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"embed\.clip\.pretrained=.*/w\.pt: no such file"):
        parse(by_path(str(tmp_path / "w.pt")))
    assert parse(by_path("w.pt")) == ClipSource("tag")


def test_other_schemes_are_models_of_a_hub() -> None:
    settings = ClipSettings(model="hf-hub:org/name", preprocess=PreprocessSettings(size=64))
    assert parse(settings) == ClipSource("hub")
    expected = {"model": "hf-hub:org/name", "pretrained": None, "preprocess": {"size": 64}}
    assert parse(settings).describe(settings) == expected


def test_a_location_has_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("clip/w.pt"))
    folder = clip_location(ClipSettings(model="local-dir:clip"))
    assert folder == {"model": f"local-dir:{tmp_path.resolve() / 'clip'}", "pretrained": None}
    assert clip_location(by_path("clip/w.pt"))["pretrained"] == str(Path.cwd() / "clip/w.pt")
    assert clip_location(by_path("openai"))["pretrained"] == "openai"
    assert clip_location(ClipSettings(model="hf-hub:org/name"))["model"] == "hf-hub:org/name"


def test_a_link_in_the_hubs_cache_keeps_its_name_and_its_neighbours(bare_weights: str, tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "blob").write_bytes(Path(bare_weights).read_bytes())
    link = tmp_path / "snapshot" / WEIGHTS
    link.symlink_to("../blob")
    assert clip_location(ClipSettings(model=TINY, pretrained=str(link)))["pretrained"] == str(link)


def test_a_folder_of_another_kind_is_described(tmp_path: Path) -> None:
    for name, file, named in (
        ("absent", None, "there is no such folder"),
        ("empty", "README.md", r"and no config\.json \(transformers\)"),
        ("pipe", "model_index.json", r"a pipeline of diffusers.*\n.*hf_clip:ORG/NAME"),
        ("lora", "adapter_config.json", r"an adapter \(PEFT\).*\nMerge it"),
        ("pt", "ViT-L-14.pt", r"only weights such as ViT-L-14\.pt\.\n.* openai_clip:.*pt/ViT-L-14\.pt"),
    ):
        if file is not None:
            write(tmp_path / name / file)
        with pytest.raises(InputError, match=rf"holds no {CONFIG}.*{named}") as raised:
            parse(ClipSettings(model=f"local-dir:{tmp_path / name}"))
        assert str(raised.value).count("\n") <= 1


def test_an_archive_is_described_by_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("w.pt"))
    settings = ClipSettings(model="openai_clip:w.pt")
    assert parse(settings) == ClipSource("openai", file=Path("w.pt"))
    assert parse(settings).describe(settings) == {"model": "openai_clip", "files": {"w.pt": sha256(b"weights")}}
    assert clip_location(settings) == {"model": f"openai_clip:{Path.cwd() / 'w.pt'}", "pretrained": None}
    with pytest.raises(
        InputError, match=r"openai_clip:x\.pt: neither a file nor a model of OpenAI's package; those are"
    ):
        parse(ClipSettings(model="openai_clip:x.pt"))
