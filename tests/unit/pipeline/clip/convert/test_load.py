"""Models of transformers and archives of OpenAI through our encoder: the vectors are those of their own package."""

from __future__ import annotations

import io
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image

from priorkit.pipeline.clip.convert.load import load_state
from priorkit.pipeline.clip.convert.torchscript import read_torchscript
from priorkit.pipeline.clip.convert.transformers_files import weight_files
from priorkit.pipeline.clip.convert.transformers_weights import read_tensors, to_open_clip
from priorkit.pipeline.clip.encoder import ClipEncoder, clip_source, identify_clip
from priorkit.pipeline.clip.identity import clip_difference, hash_weights, is_same_clip
from priorkit.pipeline.clip.settings import ClipSettings, PreprocessSettings
from priorkit.pipeline.errors import InputError, SettingsError

from ..conftest import CONFIG, write_folder
from .conftest import (
    CAPTIONS,
    OPENAI_CONFIG,
    VOCABULARY,
    change_json,
    encoder_settings,
    randomise,
    read_json,
    write_clip,
)


def photo(width: int, height: int, seed: int = 0) -> bytes:
    """A PNG with smooth and sharp parts."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (7, 5, 3), dtype=np.uint8)).resize((width, height))
    pixels = np.array(small)
    pixels[height // 3 :, width // 2 :] = random.integers(0, 256, 3, dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


PHOTOS = [photo(61, 40), photo(33, 47, 1), photo(34, 34, 2), photo(20, 93, 3)]


def features(output: Any) -> torch.Tensor:
    """Features as a tensor; transformers 5 returns them inside an output."""
    return torch.as_tensor(output if isinstance(output, torch.Tensor) else output.pooler_output)


def pixels_of(folder: Path) -> torch.Tensor:
    """Preprocess the photos with the processor of transformers that uses Pillow."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in PHOTOS]
    return torch.as_tensor(np.array(processor(images, return_tensors="np")["pixel_values"]))


@torch.no_grad()
def require_equal_vectors(folder: Path, model: Any, encoder: ClipEncoder, *, mask: bool) -> None:
    """Check images, captions and token states of an encoder against the model."""
    expected = features(model.get_image_features(pixel_values=pixels_of(folder)))
    found = encoder.encode_images([encoder.decode(data) for data in PHOTOS])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(CAPTIONS, padding="max_length", max_length=12, truncation=True, return_tensors="pt")
    inputs = dict(tokens) if mask else {"input_ids": tokens["input_ids"]}
    text = encoder.encode_texts(CAPTIONS, token_states=True)
    torch.testing.assert_close(text.text_embed, features(model.get_text_features(**inputs)), rtol=1e-4, atol=1e-5)
    states = model.text_model(**inputs).last_hidden_state
    assert text.token_states is not None
    for row, found_states in enumerate(torch.split(text.token_states, text.lengths)):
        torch.testing.assert_close(found_states, states[row, : text.lengths[row]], rtol=1e-4, atol=1e-5)


def test_a_clip_of_transformers_gives_the_vectors_of_transformers(clip: tuple[Path, Any]) -> None:
    folder, model = clip
    encoder = ClipEncoder(encoder_settings(folder, token_states=True))
    require_equal_vectors(folder, model, encoder, mask=True)
    assert encoder.encode_texts(CAPTIONS, token_states=True).lengths == [5, 2, 12, 3, 6]
    assert encoder.identity["text_cut"] is True
    assert (encoder.identity["embed_dim"], encoder.identity["token_width"]) == (20, 24)
    assert encoder.identity["activation"] == "quick_gelu"
    assert encoder.identity["preprocess"] == {
        "size": [30, 30], "resize_to": 34, "mode": "RGB", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4],
        "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0,
    }  # fmt: skip


def test_a_siglip_of_transformers_gives_the_vectors_of_transformers(siglip: tuple[Path, Any]) -> None:
    folder, model = siglip
    encoder = ClipEncoder(encoder_settings(folder, token_states=True))
    require_equal_vectors(folder, model, encoder, mask=False)
    assert encoder.encode_texts(CAPTIONS, token_states=True).lengths == [12] * len(CAPTIONS)
    assert (encoder.identity["embed_dim"], encoder.identity["token_width"]) == (36, 24)
    assert encoder.identity["preprocess"]["interpolation"] == "bilinear"
    assert encoder.identity["preprocess"]["resize_mode"] == "squash"


@torch.no_grad()
def require_equal_empty_inputs(folder: Path, vision: Any, text: Any, pad: bool) -> None:
    """Compare the outputs for empty inputs, as diffusers computes them, by the largest difference over the norm."""
    empty = ClipEncoder(encoder_settings(folder)).encode_empty()
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        "", padding="max_length" if pad else False, max_length=12, return_tensors="pt"
    )["input_ids"]
    output = text(tokens)
    pooled = output.text_embeds if hasattr(output, "text_embeds") else output.pooler_output
    image = vision(torch.zeros(1, 3, 30, 30))
    expected = {
        "image_embed": (image.image_embeds if hasattr(image, "image_embeds") else image.pooler_output)[0],
        "text_embed": pooled[0],
        "token_states": output.last_hidden_state[0],
    }
    for name, found in empty.tensors().items():
        values = expected[name].numpy()
        assert found.shape == values.shape, name
        assert np.linalg.norm(found - values) <= 1e-6 * np.linalg.norm(values), name


def test_empty_inputs_of_a_clip_equal_those_of_transformers(clip: tuple[Path, Any]) -> None:
    folder, model = clip
    towers = []
    for kind, config, parts in (
        (transformers.CLIPVisionModelWithProjection, model.config.vision_config, ("vision_model", "visual_projection")),
        (transformers.CLIPTextModelWithProjection, model.config.text_config, ("text_model", "text_projection")),
    ):
        tower = kind(type(config)(**{**config.to_dict(), "projection_dim": 20})).eval()
        tower.load_state_dict({name: value for name, value in model.state_dict().items() if name.startswith(parts)})
        towers.append(tower)
    require_equal_empty_inputs(folder, *towers, pad=False)


def test_empty_inputs_of_a_siglip_equal_those_of_transformers(siglip: tuple[Path, Any]) -> None:
    """Its text tower has no end-of-text token and reads all positions."""
    model = siglip[1]
    require_equal_empty_inputs(siglip[0], model.vision_model, model.text_model, pad=True)


@pytest.mark.parametrize("activation", ["gelu", "gelu_pytorch_tanh"])
def test_other_activations_norms_and_ends_are_converted(activation: str, tmp_path: Path) -> None:
    """The end of a text is a word here, whose number is not the highest."""
    text = {"hidden_act": activation, "layer_norm_eps": 0.1, "eos_token_id": VOCABULARY["cat"]}
    model = write_clip(tmp_path / "clip", text=text, end="cat", hidden_act=activation, layer_norm_eps=0.01)
    require_equal_vectors(tmp_path / "clip", model, ClipEncoder(encoder_settings(tmp_path / "clip")), mask=True)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_towers_in_16_bits_agree_with_float32(name: str, request: pytest.FixtureRequest) -> None:
    folder, _ = request.getfixturevalue(name)
    whole, half = (ClipEncoder(encoder_settings(folder, dtype=dtype)) for dtype in ("float32", "bfloat16"))
    images = [whole.decode(data) for data in PHOTOS]
    for found, expected in (
        (half.encode_images(images), whole.encode_images(images)),
        (half.encode_texts(CAPTIONS).text_embed, whole.encode_texts(CAPTIONS).text_embed),
    ):
        assert torch.cosine_similarity(found, expected, dim=-1).min() > 0.99
    assert clip_difference(whole.identity, half.identity, strict=True) == "dtype: 'float32' -> 'bfloat16'"


def test_a_bin_file_and_parts_of_weights_are_the_same_clip(clip: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = clip
    for name in ("bin", "parts"):
        shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(model.state_dict(), tmp_path / "bin/pytorch_model.bin")
    model.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    ways = [ClipSettings(model=f"local-dir:{path}") for path in (folder, tmp_path / "bin", tmp_path / "parts")]
    known = identify_clip(ways[0])
    assert [way for way in ways if clip_difference(known, identify_clip(way), strict=True)] == []
    assert len({json.dumps(clip_source(way)) for way in ways}) == 3


def test_the_same_weights_in_open_clip_are_the_same_clip_with_another_processor(tmp_path: Path) -> None:
    """The tokenizer and the crop differ, so a folder cannot be extended, but priors are of the same CLIP."""
    write_clip(tmp_path / "clip", num_attention_heads=4)
    change_json(tmp_path / "clip" / processor_file(tmp_path / "clip"), **square_processor(tmp_path / "clip"))
    loaded = ClipEncoder(encoder_settings(tmp_path / "clip"))
    vision = {"image_size": 30, "layers": 2, "width": 32, "head_width": 8, "patch_size": 10, "mlp_ratio": 2.0}
    text = {"context_length": 12, "vocab_size": 13, "width": 24, "heads": 3, "layers": 2, "mlp_ratio": 56 / 24}
    config = {
        "model_cfg": {"embed_dim": 20, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]},
    }
    # before packing, which frees the weights of the blocks
    model = open_clip.CLIP(**config["model_cfg"])

    load_state(model, to_open_clip(read_tensors(weight_files(tmp_path / "clip")), "clip"), open_clip, may_resize=False)
    other = write_folder(tmp_path / "other", {"w.pt": model.state_dict()}, config)
    assert clip_difference(identify_clip(other), loaded.identity) == ""
    assert is_same_clip(loaded.identity, {}, other)
    assert "processor_sha256" in clip_difference({**identify_clip(other)}, loaded.identity, strict=True)


def processor_file(folder: Path) -> str:
    return next(name for name in ("preprocessor_config.json", "processor_config.json") if (folder / name).is_file())


def square_processor(folder: Path) -> dict[str, Any]:
    """Change the processor so that it resizes to the size that it crops to, as open_clip does."""
    stored = read_json(folder / processor_file(folder))
    if "image_processor" in stored:
        return {"image_processor": {**stored["image_processor"], "size": {"shortest_edge": 30}}}
    return {"size": {"shortest_edge": 30}}


def test_a_clip_with_openais_vocabulary_needs_no_tokenizer(tmp_path: Path) -> None:
    text = {"vocab_size": 49408, "eos_token_id": 49407, "max_position_embeddings": 12, "hidden_size": 8,
            "num_attention_heads": 2, "intermediate_size": 8}  # fmt: skip
    model = write_clip(tmp_path / "clip", text=text)
    for path in (tmp_path / "clip").glob("tokenizer*"):
        path.unlink()
    encoder = ClipEncoder(encoder_settings(tmp_path / "clip"))
    tokens = encoder.tokenize(["a red square", "&amp; a"])
    assert torch.equal(tokens, open_clip.SimpleTokenizer(context_length=12)(["a red square", "&amp; a"]))
    with torch.no_grad():
        expected = features(model.get_text_features(input_ids=tokens))
    torch.testing.assert_close(encoder.encode_tokens(tokens).text_embed, expected, rtol=1e-4, atol=1e-5)


def test_settings_replace_what_a_folder_states(clip: tuple[Path, Any], siglip: tuple[Path, Any]) -> None:
    folder = f"local-dir:{clip[0]}"
    changed = ClipSettings(
        model=folder, quick_gelu=False, preprocess=PreprocessSettings(mean=(0, 0, 0), size=60, resize_mode="squash")
    )
    found = identify_clip(changed)
    assert (found["activation"], found["preprocess"]["size"]) == ("gelu", [60, 60])
    assert (found["preprocess"]["mean"], found["preprocess"]["std"]) == ([0, 0, 0], [0.2, 0.3, 0.4])
    assert "resize_to" not in found["preprocess"]
    assert clip_source(changed)["quick_gelu"] is False
    padded = ClipSettings(model=folder, preprocess=PreprocessSettings(resize_mode="longest"))
    encoder = ClipEncoder(encoder_settings(clip[0], clip={"preprocess": padded.preprocess}))
    assert encoder.decode(photo(60, 20)).shape == (30, 30, 3)
    with pytest.raises(SettingsError, match=r"embed\.clip\.quick_gelu=true has no effect on the SigLIP"):
        identify_clip(ClipSettings(model=f"local-dir:{siglip[0]}", quick_gelu=True))
    with pytest.raises(SettingsError, match=r"embed\.clip\.preprocess\.size=60 has no effect on the SigLIP"):
        identify_clip(ClipSettings(model=f"local-dir:{siglip[0]}", preprocess=PreprocessSettings(size=60)))


def test_weights_that_do_not_fit_the_config_are_refused(clip: tuple[Path, Any], tmp_path: Path) -> None:
    shutil.copytree(clip[0], tmp_path / "clip")
    vision = read_json(tmp_path / "clip/config.json")["vision_config"]
    change_json(tmp_path / "clip/config.json", vision_config={**vision, "num_hidden_layers": 3})
    with pytest.raises(InputError, match=r"cannot be loaded \(.*visual\.transformer\.resblocks\.2"):
        identify_clip(ClipSettings(model=f"local-dir:{tmp_path / 'clip'}"))
    change_json(tmp_path / "clip/config.json", vision_config={**vision, "image_size": 40})
    change_json(tmp_path / "clip" / processor_file(tmp_path / "clip"), image_processor=None, size=40, crop_size=40)
    with pytest.raises(InputError, match=r"cannot be loaded \(.*visual\.positional_embedding"):
        identify_clip(ClipSettings(model=f"local-dir:{tmp_path / 'clip'}"))


@torch.no_grad()
def test_an_archive_of_openai_gives_the_vectors_of_its_own_module(archive: tuple[Path, Any]) -> None:
    path, module = archive
    encoder = ClipEncoder(encoder_settings(f"openai_clip:{path}", token_states=True))
    images = encoder.prepare([encoder.decode(data) for data in PHOTOS])
    torch.testing.assert_close(encoder.encode_pixels(images), module.encode_image(images), rtol=1e-4, atol=1e-5)
    tokens = encoder.tokenize(CAPTIONS)
    text = encoder.encode_tokens(tokens, token_states=True)
    torch.testing.assert_close(text.text_embed, module.encode_text(tokens), rtol=1e-4, atol=1e-5)
    assert text.lengths == [int(row.argmax()) + 1 for row in tokens]
    assert encoder.identity["activation"] == "quick_gelu"
    assert encoder.identity["source"]["model"] == "openai_clip"
    assert encoder.identity["preprocess"]["mean"] == [0.48145466, 0.4578275, 0.40821073]


def test_an_archive_is_the_same_clip_by_each_way_to_name_it(
    archive: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(archive[0], tmp_path)
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "tiny-openai.json").write_text(json.dumps({**OPENAI_CONFIG, "quick_gelu": False}))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [*open_clip.factory._MODEL_CONFIG_PATHS])
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {**open_clip.factory._MODEL_CONFIGS})
    open_clip.add_model_config(configs)
    config = {"model_cfg": OPENAI_CONFIG, "preprocess_cfg": {}}
    folder = write_folder(tmp_path / "clip", {"ViT.pt": (tmp_path / "ViT.pt").read_bytes()}, config)
    torch.save(read_torchscript(tmp_path / "ViT.pt"), tmp_path / "state.pt")
    ways = [
        ClipSettings(model=f"openai_clip:{tmp_path / 'ViT.pt'}"),
        ClipSettings(model=f"openai_clip:{tmp_path / 'state.pt'}"),
        ClipSettings(model="tiny-openai", pretrained=str(tmp_path / "ViT.pt")),
        folder,
    ]
    known = identify_clip(ways[0])
    assert [clip_difference(known, identify_clip(way), strict=True) for way in ways] == [""] * 4
    (tmp_path / "clip" / CONFIG).write_text(json.dumps({**config, "model_cfg": {**OPENAI_CONFIG, "quick_gelu": False}}))
    with pytest.raises(InputError, match=r"its code uses QuickGELU, but .* says quick_gelu=false"):
        identify_clip(folder)


def test_an_image_size_can_be_set_for_an_archive(archive: tuple[Path, Any]) -> None:
    settings = ClipSettings(
        model=f"openai_clip:{archive[0]}", preprocess=PreprocessSettings(size=64, interpolation="bilinear")
    )
    found = identify_clip(settings)["preprocess"]
    assert (found["size"], found["interpolation"]) == ([64, 64], "bilinear")


def test_an_archive_of_another_architecture_is_refused_with_the_way_to_load_it(archive: tuple[Path, Any]) -> None:
    with pytest.raises(InputError, match=r"of another architecture than .*\n.*--model openai_clip:.*ViT\.pt") as raised:
        identify_clip(ClipSettings(model="ViT-B/32", pretrained=str(archive[0])))
    assert str(raised.value).count("\n") == 1


def test_an_archive_of_16_bits_is_loaded_with_its_exact_values(tmp_path: Path) -> None:
    model = randomise(open_clip.CLIP(**OPENAI_CONFIG))
    open_clip.convert_weights_to_fp16(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls TorchScript deprecated
        torch.jit.save(torch.jit.script(model), str(tmp_path / "ViT.pt"))
    found = identify_clip(ClipSettings(model=f"openai_clip:{tmp_path / 'ViT.pt'}"))
    assert found["weights_sha256"] == hash_weights(model)
