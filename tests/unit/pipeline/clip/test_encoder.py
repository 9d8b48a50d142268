"""Loading a CLIP by folder, path, tag and hub: never with weights that were not read, and always as the same one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import open_clip
import pytest
import safetensors.torch
import torch

from priorkit.pipeline.clip import encoder as clip_module
from priorkit.pipeline.clip.encoder import ClipEncoder, check_clip, clip_location, clip_source, identify_clip
from priorkit.pipeline.clip.identity import clip_difference, is_same_clip
from priorkit.pipeline.clip.settings import ClipSettings, EncoderSettings, PreprocessSettings
from priorkit.pipeline.errors import InputError, PriorkitError, SettingsError

from ....conftest import TINY_CLIP_CONFIG

TINY = "priorkit-tiny"
WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"


@pytest.fixture
def architecture(tmp_path: Path) -> Iterator[str]:
    """The tiny CLIP's architecture under a name of open_clip's."""
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / f"{TINY}.json").write_text(json.dumps(TINY_CLIP_CONFIG["model_cfg"]))
    open_clip.add_model_config(folder)
    yield TINY
    open_clip.factory._MODEL_CONFIG_PATHS.remove(folder)
    del open_clip.factory._MODEL_CONFIGS[TINY]


@pytest.fixture
def tags(architecture: str, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives the architecture tags, each of the tiny CLIP's weights."""

    def give(**tags: dict[str, Any]) -> None:
        half = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "file": str(tiny_clip / WEIGHTS)}
        found = {tag: {**half, **changes} for tag, changes in tags.items()}
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, architecture, found)

    return give


@pytest.fixture
def alone(tiny_clip: Path, tmp_path: Path) -> str:
    """The tiny CLIP's weights without its config."""
    shutil.copy(tiny_clip / WEIGHTS, tmp_path / "weights.safetensors")
    return str(tmp_path / "weights.safetensors")


def write_folder(folder: Path, files: dict[str, Any], config: dict[str, Any] = TINY_CLIP_CONFIG) -> ClipSettings:
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(config))
    for name, content in files.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            torch.save(content, folder / name)
    return ClipSettings(model=f"local-dir:{folder}")


def tensors(tiny_clip: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(tiny_clip / WEIGHTS)


# random weights


def test_a_checkpoint_of_open_clips_training_is_read(tiny_clip: Path, tmp_path: Path) -> None:
    wrapped = {f"module.{name}": value for name, value in tensors(tiny_clip).items()}
    settings = write_folder(tmp_path / "clip", {"epoch_32.pt": {"epoch": 32, "state_dict": wrapped}})
    expected = identify_clip(ClipSettings(model=f"local-dir:{tiny_clip}"))
    assert identify_clip(settings) == expected
    assert list(clip_source(settings)["files"]) == ["epoch_32.pt", CONFIG]


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({}, r"holds no weights \(\*\.safetensors, \*\.bin, \*\.pth, \*\.pt\)"),
        ({"epoch_1.pt": {}, "epoch_2.pt": {}}, r"several files of weights \(epoch_1\.pt, epoch_2\.pt\).*rename"),
        ({"a.pth": {}, "b.pth": {}, "c.bin": {}, "d.pt": {}}, r"\(a\.pth, b\.pth, c\.bin and more\)"),
        ({WEIGHTS: b"version https://git-lfs.github.com/spec/v1\noid sha256:0"}, "a pointer of Git LFS.*git lfs pull"),
        ({WEIGHTS: b""}, "an empty file"),
    ],
)
def test_a_folder_without_weights_that_are_clear_is_refused(files: dict[str, Any], named: str, tmp_path: Path) -> None:
    settings = write_folder(tmp_path / "clip", files)
    with pytest.raises(InputError, match=named):
        check_clip(settings)


def test_hidden_files_are_no_weights(tiny_clip: Path, tmp_path: Path) -> None:
    content = (tiny_clip / WEIGHTS).read_bytes()
    files = {"w.safetensors": content, "._w.safetensors": b"\0\5\26\7", ".old.bin": {}}
    settings = write_folder(tmp_path / "clip", files)
    assert identify_clip(settings) == identify_clip(ClipSettings(model=f"local-dir:{tiny_clip}"))


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_weights_of_other_lengths_are_not_interpolated_unasked(ending: str, tiny_clip: Path, tmp_path: Path) -> None:
    def write(name: str, changed: str, rows: int) -> ClipSettings:
        found = tensors(tiny_clip)
        longer = {**found, changed: torch.zeros(rows, found[changed].shape[1])}
        content = safetensors.torch.save(longer) if ending == "safetensors" else {"state_dict": longer}
        return write_folder(tmp_path / name, {f"w.{ending}": content})

    with pytest.raises(InputError, match=r"texts of 9 tokens, the model's are of \d+"):
        identify_clip(write("texts", "positional_embedding", 9))
    settings = write("images", "visual.positional_embedding", 26)
    with pytest.raises(InputError, match=r"images of another size \(26 positions\).*embed\.clip\.preprocess\.size"):
        identify_clip(settings)
    size = TINY_CLIP_CONFIG["model_cfg"]["vision_cfg"]["image_size"]
    identify_clip(settings.model_copy(update={"preprocess": PreprocessSettings(size=size)}))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model_cfg": {**TINY_CLIP_CONFIG["model_cfg"], "vision_cfg": 3}}, r"model_cfg\.vision_cfg must be .*got 3"),
        ({"model_cfg": {"embed_dim": 8, "vision_cfg": {}}}, r"model_cfg\.text_cfg must be an object \(got null"),
        ({"preprocess_cfg": {"mean": "x"}}, r"preprocess_cfg\.mean must be three numbers \(got \"x\"\)"),
        ({"preprocess_cfg": {"std": [0.5]}}, r"preprocess_cfg\.std must be three numbers"),
        ({"preprocess_cfg": {"interpolation": ["x"]}}, r"preprocess_cfg\.interpolation must be bicubic or bilinear"),
        ({"preprocess_cfg": {"resize_mode": "crop"}}, r"resize_mode must be shortest or longest or squash"),
    ],
)
def test_a_config_with_a_wrong_value_is_refused(changed: dict[str, Any], named: str, tmp_path: Path) -> None:
    settings = write_folder(tmp_path / "clip", {"w.pt": {}}, {**TINY_CLIP_CONFIG, **changed})
    with pytest.raises(InputError, match=named):
        check_clip(settings)


@pytest.mark.parametrize("content", [{}, [1], {"state_dict": None}, {1: 2}, b"no weights"])
def test_files_that_are_no_weights_are_explained(content: Any, tmp_path: Path) -> None:
    settings = write_folder(tmp_path / "clip", {"w.pt": content})
    with pytest.raises(
        InputError, match=r"cannot be loaded \(\w+.*\); weights are the tensors of a model's state_dict"
    ):
        identify_clip(settings)


def test_weights_that_lack_a_tensor_are_refused_in_few_words(tiny_clip: Path, tmp_path: Path) -> None:
    for name, kept in (("one.pt", {"text_projection"}), ("none.pt", set(tensors(tiny_clip)))):
        left = {key: value for key, value in tensors(tiny_clip).items() if key not in kept}
        settings = write_folder(tmp_path / name, {name: {**left, "other": torch.ones(1)}})
        with pytest.raises(InputError, match=r"cannot be loaded \(.*text_projection|Missing key") as raised:
            identify_clip(settings)
        assert len(str(raised.value)) < 700


def test_a_model_of_the_hub_with_only_its_config_cached_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cached = tmp_path / "models--org--tiny"
    (cached / "snapshots/1").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("1")
    (cached / "snapshots/1" / CONFIG).write_text(json.dumps(TINY_CLIP_CONFIG))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"hf-hub:org/tiny.*its config is there, its weights are not.*\n.*local-dir:"):
        identify_clip(ClipSettings(model="hf-hub:org/tiny"))
    assert caplog.records == []


def test_a_tag_goes_before_a_file_of_its_name(
    tags: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags(mine={})
    monkeypatch.chdir(tmp_path)
    Path("mine").write_bytes(b"other weights")
    settings = ClipSettings(model=TINY, pretrained="mine")
    assert clip_source(settings) == {"model": TINY, "pretrained": "mine"}
    check_clip(settings)


# one identity


def test_the_same_weights_by_tag_path_and_folder_are_one_clip(
    tags: Callable[..., None], alone: str, tiny_clip: Path
) -> None:
    tags(mine={})
    folder = ClipSettings(model=f"local-dir:{tiny_clip}")
    ways = [folder, *(ClipSettings(model=TINY, pretrained=name) for name in ("mine", alone, str(tiny_clip / WEIGHTS)))]
    found = [identify_clip(way) for way in ways]
    assert [identity for identity in found if clip_difference(found[0], identity, strict=True)] == []
    assert len({identity["weights_sha256"] for identity in found}) == 1
    for way in ways:
        for other in ways:
            known = {"source": clip_source(other), **identify_clip(other)}
            assert is_same_clip(known, {}, way)
            assert is_same_clip({}, clip_location(other), way)


def test_other_weights_activation_or_preprocessing_are_another_clip(
    tags: Callable[..., None], alone: str, tiny_clip: Path, tmp_path: Path
) -> None:
    tags(mine={})
    folder = ClipSettings(model=f"local-dir:{tiny_clip}")
    known = {"source": clip_source(folder), "embed_dim": 16, **identify_clip(folder)}
    changed = {name: value * 2 if name == "text_projection" else value for name, value in tensors(tiny_clip).items()}
    others = [
        write_folder(tmp_path / "other", {"a.pt": changed}),
        ClipSettings(model=TINY, pretrained=alone, quick_gelu=True),
        ClipSettings(model=TINY, pretrained=alone, preprocess=PreprocessSettings(mean=(0.4, 0.5, 0.5))),
        ClipSettings(model="ViT-B-32", pretrained="openai"),  # of another size: nothing is fetched
    ]
    assert not any(is_same_clip(known, {}, other) for other in others)


def test_two_tags_of_a_model_are_two_clips_without_a_look_at_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(clip_module, "identify_clip", refuse)
    known = {"source": {"model": "ViT-B-32", "pretrained": "openai"}, "weights_sha256": "0"}
    assert is_same_clip(known, {}, ClipSettings(model="ViT-B-32-quickgelu", pretrained="openai"))
    assert not is_same_clip(known, {}, ClipSettings(model="ViT-B-32", pretrained="laion2b_e16"))


def test_the_dtype_does_not_change_the_hash_of_the_weights(tiny_clip: Path) -> None:
    clip = ClipSettings(model=f"local-dir:{tiny_clip}")
    kinds = ("float32", "bfloat16")
    found = [ClipEncoder(EncoderSettings(clip=clip, dtype=kind, device="cpu", threads=1)).identity for kind in kinds]
    assert clip_difference(*found) == ""
    assert clip_difference(*found, strict=True) == "dtype: 'float32' -> 'bfloat16'"


def test_configs_agree_whether_or_not_they_write_out_what_is_the_default(tiny_clip: Path, tmp_path: Path) -> None:
    config = json.loads(json.dumps(TINY_CLIP_CONFIG))
    config["model_cfg"]["text_cfg"]["no_causal_mask"] = False
    folder = tmp_path / "clip"
    settings = write_folder(folder, {WEIGHTS: (tiny_clip / WEIGHTS).read_bytes()}, config)
    one, other = identify_clip(ClipSettings(model=f"local-dir:{tiny_clip}")), identify_clip(settings)
    assert one["config_sha256"] != other["config_sha256"]
    assert clip_difference(one, other, strict=True) == ""
    config["model_cfg"]["text_cfg"]["heads"] = 4
    (folder / CONFIG).write_text(json.dumps(config))
    assert clip_difference(one, identify_clip(settings)).startswith("config_sha256: ")


# preprocessing and activation of weights by path


def preprocess(settings: ClipSettings) -> dict[str, Any]:
    found: dict[str, Any] = identify_clip(settings)["preprocess"]
    return found


def test_weights_by_path_are_preprocessed_as_all_tags_of_their_architecture(
    tags: Callable[..., None], alone: str
) -> None:
    tags(a={"interpolation": "bilinear", "quick_gelu": True}, b={"interpolation": "bilinear", "quick_gelu": True})
    found = identify_clip(ClipSettings(model=TINY, pretrained=alone))
    assert (found["preprocess"]["mean"], found["preprocess"]["interpolation"]) == ([0.5, 0.5, 0.5], "bilinear")
    assert found["activation"] == "quick_gelu"


def test_where_the_tags_disagree_the_choices_are_named_until_the_settings_say(
    tags: Callable[..., None], alone: str
) -> None:
    tags(a={"quick_gelu": True, "resize_mode": "squash"}, b={}, c={})
    with pytest.raises(InputError) as raised:
        check_clip(ClipSettings(model=TINY, pretrained=alone))
    message = str(raised.value)
    assert f"embed.clip.pretrained={alone}: the preprocessing and activation of these weights is not known" in message
    assert "{preprocess: {resize_mode: squash}, quick_gelu: true} (as a)" in message
    assert "{preprocess: {resize_mode: shortest}, quick_gelu: false} (as b and 1 more)" in message
    assert message.count("\n") < 3
    half = ClipSettings(model=TINY, pretrained=alone, quick_gelu=True)
    with pytest.raises(InputError, match="the preprocessing of these weights"):
        check_clip(half)
    whole = half.model_copy(update={"preprocess": PreprocessSettings(resize_mode="squash")})
    assert preprocess(whole)["resize_mode"] == "squash"
    assert identify_clip(whole)["activation"] == "quick_gelu"


def test_real_tags_that_disagree_are_refused(alone: str) -> None:
    with pytest.raises(InputError, match=r"the activation of .*\n.*quick_gelu: true\} \(as openai and"):
        check_clip(ClipSettings(model="ViT-B-32", pretrained=alone))
    check_clip(ClipSettings(model="ViT-B-32", pretrained=alone, quick_gelu=False))
    check_clip(ClipSettings(model="ViT-B-32-quickgelu", pretrained=alone))


def test_the_config_beside_the_weights_says_more_than_the_tags(
    tags: Callable[..., None], tiny_clip: Path, tmp_path: Path
) -> None:
    tags(a={"quick_gelu": True}, b={})
    folder = tmp_path / "clip"
    said = {**TINY_CLIP_CONFIG, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}}
    write_folder(folder, {"mine.pt": tensors(tiny_clip)}, said)
    settings = ClipSettings(model=TINY, pretrained=str(folder / "mine.pt"))
    assert preprocess(settings)["mean"] == [0.1, 0.2, 0.3]
    assert identify_clip(settings)["activation"] == "gelu"
    assert set(clip_source(settings)["files"]) == {"mine.pt", CONFIG}
    with pytest.raises(InputError, match=r"beside it is not that of ViT-B-32; give --model local-dir:"):
        check_clip(ClipSettings(model="ViT-B-32", pretrained=str(folder / "mine.pt")))
    (folder / CONFIG).write_text("[1]")
    with pytest.raises(InputError, match="not a config of open_clip"):
        check_clip(settings)


def test_a_link_in_the_hubs_cache_keeps_its_name_and_its_neighbours(alone: str, tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "blob").write_bytes(Path(alone).read_bytes())
    link = tmp_path / "snapshot" / WEIGHTS
    link.symlink_to("../blob")
    assert clip_location(ClipSettings(model=TINY, pretrained=str(link)))["pretrained"] == str(link)


def test_a_folder_that_does_not_say_its_preprocessing_has_that_of_its_architectures_tags(
    tags: Callable[..., None], tiny_clip: Path, tmp_path: Path
) -> None:
    tags(a={}, b={"std": (1.0, 1.0, 1.0)})
    config = {"model_cfg": TINY_CLIP_CONFIG["model_cfg"]}
    settings = write_folder(tmp_path / "clip", {"a.pt": tensors(tiny_clip)}, config)
    with pytest.raises(InputError, match=r"embed\.clip\.model=local-dir:.*the preprocessing .* tags of priorkit-tiny"):
        check_clip(settings)
    tags(a={}, b={})
    assert preprocess(settings)["mean"] == [0.5, 0.5, 0.5]


def test_settings_change_the_preprocessing_of_any_clip_and_its_identity(
    tags: Callable[..., None], tiny_clip: Path
) -> None:
    tags(mine={})
    wanted = PreprocessSettings(mean=(0.1, 0.2, 0.3), interpolation="bilinear", size=64)
    for settings in (ClipSettings(model=TINY, pretrained="mine"), ClipSettings(model=f"local-dir:{tiny_clip}")):
        changed = settings.model_copy(update={"preprocess": wanted})
        found = preprocess(changed)
        assert (found["mean"], found["interpolation"]) == ([0.1, 0.2, 0.3], "bilinear")
        assert found["size"] in (64, [64, 64])
        assert clip_source(changed) == {**clip_source(settings), "preprocess": changed.overrides()["preprocess"]}
        assert clip_location(changed)["preprocess"]["mean"] == [0.1, 0.2, 0.3]
        assert ClipSettings(**clip_location(changed)).preprocess == wanted


def test_an_activation_that_settings_ask_for_is_there_or_an_error(tiny_clip: Path, tags: Callable[..., None]) -> None:
    tags(quick={"quick_gelu": True})
    with pytest.raises(InputError, match=r"the other activation than priorkit-tiny.*embed\.clip\.quick_gelu"):
        identify_clip(ClipSettings(model=TINY, pretrained="quick"))
    for settings in (ClipSettings(model=TINY, pretrained="quick"), ClipSettings(model=f"local-dir:{tiny_clip}")):
        for quick, name in ((True, "quick_gelu"), (False, "gelu")):
            assert identify_clip(settings.model_copy(update={"quick_gelu": quick}))["activation"] == name


def test_an_activation_without_effect_is_an_error(tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip_module._identify.cache_clear()
    monkeypatch.setattr(clip_module, "has_quick_gelu", lambda model: False)  # as in towers of timm and Hugging Face
    with pytest.raises(SettingsError, match=r"embed\.clip\.quick_gelu=true has no effect"):
        identify_clip(ClipSettings(model=f"local-dir:{tiny_clip}", quick_gelu=True))


def test_a_wrong_tag_is_answered_with_the_nearest_few() -> None:
    with pytest.raises(PriorkitError) as raised:
        check_clip(ClipSettings(model="ViT-B-32", pretrained="laion2b_s34b_b79"))
    assert "nearest: laion2b_s34b_b79k" in str(raised.value)
    assert len(str(raised.value)) < 250
