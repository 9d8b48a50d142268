"""Loading a CLIP by folder, path, tag and hub, its preprocessing and activation, and the encoder's outputs."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import open_clip
import pytest
import torch

from priorkit.pipeline.clip import encoder as clip_module
from priorkit.pipeline.clip import loading
from priorkit.pipeline.clip.encoder import (
    ClipEncoder,
    check_clip,
    clip_location,
    clip_source,
    identify_clip,
    load_encoder,
    load_text_encoder,
)
from priorkit.pipeline.clip.identity import clip_difference
from priorkit.pipeline.clip.settings import ClipSettings, EncoderSettings, PreprocessSettings
from priorkit.pipeline.errors import InputError, SettingsError

from ....conftest import TINY_CLIP_CONFIG
from .conftest import CONFIG, TINY, tensors, write_folder


def test_a_training_checkpoint_of_open_clip_is_read(tiny_clip: Path, tmp_path: Path) -> None:
    wrapped = {f"module.{name}": value for name, value in tensors(tiny_clip).items()}
    settings = write_folder(tmp_path / "clip", {"epoch_32.pt": {"epoch": 32, "state_dict": wrapped}})
    expected = identify_clip(ClipSettings(model=f"local-dir:{tiny_clip}"))
    assert identify_clip(settings) == expected
    assert list(clip_source(settings)["files"]) == ["epoch_32.pt", CONFIG]


@pytest.mark.parametrize("content", [{}, [1], {"state_dict": None}, {1: 2}])
def test_a_file_without_weights_is_an_error_that_names_the_formats(content: Any, tmp_path: Path) -> None:
    settings = write_folder(tmp_path / "clip", {"w.pt": content})
    with pytest.raises(
        InputError, match=r"cannot be loaded \(\w+.*\); weights are the tensors of a model's state_dict"
    ):
        identify_clip(settings)


def test_code_of_the_tokenizer_in_a_folder_is_not_run(tiny_clip: Path, tmp_path: Path) -> None:
    config = copy.deepcopy(TINY_CLIP_CONFIG)
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "own", "tokenizer_kwargs": {"trust_remote_code": True}}
    named = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
    code = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
    settings = write_folder(
        tmp_path / "clip",
        {
            "open_clip_model.safetensors": (tiny_clip / "open_clip_model.safetensors").read_bytes(),
            "tokenizer_config.json": json.dumps(named).encode(),
            "own.py": code.encode(),
        },
        config,
    )
    with pytest.raises(InputError, match=r"its tokenizer is a class of its own .*\nUse a model whose tokenizer"):
        identify_clip(settings)
    assert not (tmp_path / "ran").exists()


def test_a_missing_tensor_is_a_short_error(tiny_clip: Path, tmp_path: Path) -> None:
    for name, kept in (("one.pt", {"text_projection"}), ("none.pt", set(tensors(tiny_clip)))):
        left = {key: value for key, value in tensors(tiny_clip).items() if key not in kept}
        settings = write_folder(tmp_path / name, {name: {**left, "other": torch.ones(1)}})
        with pytest.raises(InputError, match=r"cannot be loaded \(.*text_projection|Missing key") as raised:
            identify_clip(settings)
        assert len(str(raised.value)) < 700


def test_a_hub_model_without_cached_weights_is_refused(
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


def test_a_tag_takes_precedence_over_a_file_with_its_name(
    tags: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags(mine={})
    monkeypatch.chdir(tmp_path)
    Path("mine").write_bytes(b"other weights")
    settings = ClipSettings(model=TINY, pretrained="mine")
    assert clip_source(settings) == {"model": TINY, "pretrained": "mine"}
    check_clip(settings)


def test_the_hash_of_weights_does_not_depend_on_the_dtype(tiny_clip: Path) -> None:
    clip = ClipSettings(model=f"local-dir:{tiny_clip}")
    kinds = ("float32", "bfloat16")
    found = [ClipEncoder(EncoderSettings(clip=clip, dtype=kind, device="cpu", threads=1)).identity for kind in kinds]
    assert clip_difference(*found) == ""
    assert clip_difference(*found, strict=True) == "dtype: 'float32' -> 'bfloat16'"


# preprocessing and activation of weights by path


def preprocess(settings: ClipSettings) -> dict[str, Any]:
    found: dict[str, Any] = identify_clip(settings)["preprocess"]
    return found


def test_weights_by_path_take_the_preprocessing_that_all_tags_share(
    tags: Callable[..., None], bare_weights: str
) -> None:
    tags(a={"interpolation": "bilinear", "quick_gelu": True}, b={"interpolation": "bilinear", "quick_gelu": True})
    found = identify_clip(ClipSettings(model=TINY, pretrained=bare_weights))
    assert (found["preprocess"]["mean"], found["preprocess"]["interpolation"]) == ([0.5, 0.5, 0.5], "bilinear")
    assert found["activation"] == "quick_gelu"


def test_settings_decide_when_tags_disagree(tags: Callable[..., None], bare_weights: str) -> None:
    tags(a={"quick_gelu": True, "resize_mode": "squash"}, b={}, c={})
    with pytest.raises(InputError) as raised:
        check_clip(ClipSettings(model=TINY, pretrained=bare_weights))
    message = str(raised.value)
    assert (
        f"embed.clip.pretrained={bare_weights}: the preprocessing and activation of these weights is not known"
        in message
    )
    assert "{preprocess: {resize_mode: squash}, quick_gelu: true} (as a)" in message
    assert "{preprocess: {resize_mode: shortest}, quick_gelu: false} (as b and 1 more)" in message
    assert message.count("\n") < 3
    half = ClipSettings(model=TINY, pretrained=bare_weights, quick_gelu=True)
    with pytest.raises(InputError, match="the preprocessing of these weights"):
        check_clip(half)
    whole = half.model_copy(update={"preprocess": PreprocessSettings(resize_mode="squash")})
    assert preprocess(whole)["resize_mode"] == "squash"
    assert identify_clip(whole)["activation"] == "quick_gelu"


def test_a_config_beside_the_weights_overrides_the_tags(
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


def test_a_folder_without_preprocessing_takes_the_one_of_its_tags(
    tags: Callable[..., None], tiny_clip: Path, tmp_path: Path
) -> None:
    tags(a={}, b={"std": (1.0, 1.0, 1.0)})
    config = {"model_cfg": TINY_CLIP_CONFIG["model_cfg"]}
    settings = write_folder(tmp_path / "clip", {"a.pt": tensors(tiny_clip)}, config)
    with pytest.raises(InputError, match=r"embed\.clip\.model=local-dir:.*the preprocessing .* tags of priorkit-tiny"):
        check_clip(settings)
    tags(a={}, b={})
    assert preprocess(settings)["mean"] == [0.5, 0.5, 0.5]


def test_preprocess_settings_change_preprocessing_and_identity(tags: Callable[..., None], tiny_clip: Path) -> None:
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


def test_the_activation_in_the_settings_is_used(tiny_clip: Path, tags: Callable[..., None]) -> None:
    tags(quick={"quick_gelu": True})
    with pytest.raises(InputError, match=r"the other activation than priorkit-tiny.*embed\.clip\.quick_gelu"):
        identify_clip(ClipSettings(model=TINY, pretrained="quick"))
    for settings in (ClipSettings(model=TINY, pretrained="quick"), ClipSettings(model=f"local-dir:{tiny_clip}")):
        for quick, name in ((True, "quick_gelu"), (False, "gelu")):
            assert identify_clip(settings.model_copy(update={"quick_gelu": quick}))["activation"] == name


def test_an_activation_setting_without_effect_is_an_error(tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip_module._identify.cache_clear()
    monkeypatch.setattr(loading, "has_quick_gelu", lambda model: False)  # as in towers of timm and Hugging Face
    with pytest.raises(SettingsError, match=r"embed\.clip\.quick_gelu=true has no effect"):
        identify_clip(ClipSettings(model=f"local-dir:{tiny_clip}", quick_gelu=True))


# the encoder


def encoder_settings(tiny_clip: Path, **changed: Any) -> EncoderSettings:
    clip = ClipSettings(model=f"local-dir:{tiny_clip}")
    return EncoderSettings(**{"clip": clip, "device": "cpu", "threads": 1, "batch_size": 2, **changed})


def test_a_batch_of_images_gives_the_same_embeddings_as_single_images(tiny_clip: Path) -> None:
    encoder = load_encoder(encoder_settings(tiny_clip))
    images = [torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8) for _ in range(35)]  # more than one CPU pass
    batch = encoder.encode_images(images)
    assert (batch.dtype, batch.shape) == (torch.float32, (35, 16))
    for row in (0, 31, 32, 34):
        torch.testing.assert_close(batch[row], encoder.encode_images([images[row]])[0], rtol=1e-4, atol=1e-5)


def test_cutting_long_captions_does_not_change_their_tokens(tiny_clip: Path) -> None:
    encoder = load_encoder(encoder_settings(tiny_clip))
    long = "  a  photo of " + "word " * 10_000
    assert encoder.tokenize([long]).shape == (1, 24)
    assert torch.equal(encoder.tokenize([long]), encoder.tokenize(["a photo of " + "word " * 30]))


def test_the_cached_encoder_is_loaded_again_when_its_files_change(tiny_clip: Path, tmp_path: Path) -> None:
    settings = encoder_settings(tiny_clip, clip=write_folder(tmp_path / "clip", {"w.pt": tensors(tiny_clip)}))
    first = load_encoder(settings)
    assert load_encoder(settings) is first
    torch.save({name: value + 1 for name, value in tensors(tiny_clip).items()}, tmp_path / "clip/w.pt")
    second = load_encoder(settings)
    assert second is not first
    assert clip_difference(first.identity, second.identity).startswith("weights_sha256: ")


def test_a_text_encoder_has_no_image_tower_and_equal_text_embeddings(tiny_clip: Path) -> None:
    settings = encoder_settings(tiny_clip)
    texts, whole = load_text_encoder(settings), load_encoder(settings)
    assert texts._model.visual is None
    captions = ["a cat", "two red squares", ""]
    assert torch.equal(texts.encode_texts(captions).text_embed, whole.encode_texts(captions).text_embed)
    assert texts.identity == whole.identity


def test_a_tower_without_token_states_is_refused_if_they_are_required(tiny_clip: Path, tmp_path: Path) -> None:
    config = json.loads(json.dumps(TINY_CLIP_CONFIG))
    config["model_cfg"]["text_cfg"] |= {"embed_cls": True, "pool_type": "last"}
    config["model_cfg"]["custom_text"] = True
    model = open_clip.model.CustomTextCLIP(
        **{name: value for name, value in config["model_cfg"].items() if name != "custom_text"}
    )
    clip = write_folder(tmp_path / "clip", {"w.pt": model.state_dict()}, config)
    assert ClipEncoder(encoder_settings(tiny_clip, clip=clip)).identity["token_width"] is None
    with pytest.raises(InputError, match=r"gives no token states; set embed\.token_states=false"):
        ClipEncoder(encoder_settings(tiny_clip, clip=clip, token_states=True))


def test_empty_inputs_are_a_zero_image_and_the_empty_text(tiny_clip: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        encoder = load_encoder(encoder_settings(tiny_clip, dtype=dtype))
        empty = encoder.encode_empty()
        grey = torch.full((32, 32, 3), 127.5)  # zero after the mean of 0.5 is subtracted
        image = encoder.encode_images([grey])[0]
        text = encoder.encode_texts([""], token_states=True)
        assert (text.lengths, text.token_states is not None) == ([2], True)
        assert np.array_equal(empty.image_embed, image.numpy())
        assert np.array_equal(empty.text_embed, text.text_embed[0].numpy())
        assert np.array_equal(empty.token_states, text.token_states)
        assert abs(np.linalg.norm(empty.image_embed) - 1) > 0.01
        assert {values.dtype for values in empty.tensors().values()} == {np.dtype(np.float32)}


def test_empty_inputs_have_no_token_states_if_the_tower_has_none(
    tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = ClipEncoder(encoder_settings(tiny_clip))
    monkeypatch.setattr(encoder._text, "token_width", None)
    assert encoder.encode_empty().token_states is None


def test_empty_inputs_that_are_not_finite_are_refused(tiny_clip: Path, tmp_path: Path) -> None:
    weights = tensors(tiny_clip)
    weights["visual.proj"] = weights["visual.proj"] * float("nan")
    clip = write_folder(tmp_path / "clip", {"w.pt": weights})
    with pytest.raises(InputError, match=r"image_embed of the empty input contains NaN .*; try embed\.dtype=float32"):
        ClipEncoder(encoder_settings(tiny_clip, clip=clip)).encode_empty()
