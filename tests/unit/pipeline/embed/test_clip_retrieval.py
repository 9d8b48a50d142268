"""The engine clip-retrieval without that package: refused settings, and how its rows are matched to samples."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from priorkit.pipeline.clip.settings import ClipSettings, PreprocessSettings
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.embed.clip_retrieval import (
    ClipRetrievalEngine,
    _first_rows,
    _image_extensions,
    check_settings,
)
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.errors import PriorkitError, SettingsError


def settings_of(**changed: Any) -> EmbedSettings:
    clip = ClipSettings(model="ViT-S-32-alt", pretrained="weights.pt")
    return EmbedSettings(**{"clip": clip, "engine": "clip-retrieval", "device": "cpu", "threads": 1, **changed})


@pytest.mark.parametrize("absent", ["all_clip", "clip_retrieval.clip_inference.mapper"])
def test_a_missing_package_is_an_error_that_says_what_to_install(
    absent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(
        PriorkitError, match=r"clip-retrieval: .*; install it: pip install 'priorkit\[clip-retrieval\]'"
    ):
        ClipRetrievalEngine(Store(str(tmp_path)), settings_of())


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"dtype": "bfloat16"}, r"embed\.dtype=bfloat16: .* only do embed\.dtype=float32"),
        ({"token_states": True}, r"embed\.token_states=True: .* only do embed\.token_states=False"),
        ({"compile": True}, r"embed\.compile=True: .* only do embed\.compile=False"),
        ({"rows_per_shard": 10}, r"embed\.rows_per_shard=10: .* only do embed\.rows_per_shard=None"),
        ({"device": "cuda"}, r"embed\.device=cuda: .* only do embed\.device=cpu"),
        ({"clip": ClipSettings(model="hf-hub:org/name")}, r"embed\.clip\.model=hf-hub:org/name: .* an open_clip name"),
    ],
)
def test_an_unsupported_setting_is_named(changed: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    check_settings(settings_of())
    with pytest.raises(SettingsError, match=named):
        check_settings(settings_of(**changed))


def test_preprocessing_that_clip_retrieval_ignores_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    path = tmp_path / "weights.pt"
    path.write_bytes(b"never read here")
    plain = ClipSettings(model="ViT-B-32", pretrained=str(path), quick_gelu=False)
    check_settings(settings_of(clip=plain))
    for clip in (
        plain.model_copy(update={"quick_gelu": True}),
        ClipSettings(model="MobileCLIP2-S0", pretrained=str(path)),
        ClipSettings(pretrained="laion2b_s34b_b79k", preprocess=PreprocessSettings(size=64)),
        ClipSettings(pretrained="laion2b_s34b_b79k", quick_gelu=True),
    ):
        with pytest.raises(SettingsError, match=r"own preprocessing and activation only.*embed\.engine=native"):
            check_settings(settings_of(clip=clip))


@pytest.mark.parametrize(("bf16", "dtype"), [(True, "bfloat16"), (False, "float16")])
def test_the_dtype_on_a_gpu_is_the_one_of_clip_retrieval(
    bf16: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: bf16)
    check_settings(settings_of(device="cuda", dtype=dtype))
    with pytest.raises(SettingsError, match=rf"embed\.dtype=float32: .* only do embed\.dtype={dtype}"):
        check_settings(settings_of(device="cuda"))
    with pytest.raises(SettingsError, match=r"embed\.device=cpu"):
        check_settings(settings_of(dtype=dtype))


def test_the_first_row_of_each_pending_key_is_used() -> None:
    batch = {"image_filename": ["./a", "done", "sub/b", "a", "c"]}
    assert _first_rows(batch, dict.fromkeys(["c", "sub/b", "a"])) == {"a": 0, "sub/b": 2, "c": 4}


def test_image_extensions_are_listed_up_to_the_damage(tmp_path: Path) -> None:
    names = ["a.txt", "a.PNG", "b.jpg", "c.png", "d.seg.png", "x.y/e.webp"]
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    path = tmp_path / "00000.tar"
    assert _image_extensions(str(path)) == ["png", "jpg", "webp"]
    path.write_bytes(path.read_bytes()[: 1024 + 512 + 100])
    assert _image_extensions(str(path)) == ["png"]
