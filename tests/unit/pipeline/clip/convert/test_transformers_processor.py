"""Preprocessing and tokenizers as transformers states them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from priorkit.pipeline.clip.convert.transformers_config import Family
from priorkit.pipeline.clip.convert.transformers_processor import (
    Resize,
    Tokenizer,
    read_preprocess,
    require_tokenizer,
)
from priorkit.pipeline.errors import InputError

from .conftest import VOCABULARY, write_tokenizer

OPENAI_MEAN = [0.48145466, 0.4578275, 0.40821073]


def read(folder: Path, family: Family, side: int, **values: Any) -> dict[str, Any] | None:
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    return read_preprocess(folder, family, side)


def test_files_of_all_ages_are_read(tmp_path: Path) -> None:
    """Configs in the forms that OpenAI, LAION, Google and transformers 5 publish."""
    old = read(
        tmp_path, "clip", 224, size=224, crop_size=224, resample=3, do_center_crop=True, feature_extractor_type="x"
    )
    assert old is not None
    assert (old["mean"], old["interpolation"], old["resize_mode"]) == (OPENAI_MEAN, "bicubic", "shortest")
    sides = {"height": 224, "width": 224}
    assert read(tmp_path, "clip", 224, size={"shortest_edge": 224}, crop_size=sides) == old
    siglip = read(tmp_path, "siglip", 224, size=sides, resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    assert siglip == {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    assert read(tmp_path, "siglip", 224, size=224, resample=2) == siglip
    (tmp_path / "preprocessor_config.json").unlink()
    assert read_preprocess(tmp_path, "clip", 224) is None
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert read_preprocess(tmp_path, "clip", 224) is None
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"size": 224, "crop_size": 224}}))
    assert read_preprocess(tmp_path, "clip", 224) == old


def test_a_larger_resize_and_no_normalisation_are_kept(tmp_path: Path) -> None:
    found = read(tmp_path, "clip", 224, size={"shortest_edge": 256}, do_normalize=False)
    assert found is not None
    assert (found["resize_to"], found["mean"], found["std"]) == (256, [0.0] * 3, [1.0] * 3)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"do_resize": False}, "do_resize=false is preprocessing that priorkit cannot do"),
        ({"rescale_factor": 1.0}, "rescale_factor is preprocessing"),
        ({"resample": 9}, "resample=9 is none of Pillow's methods"),
        ({"image_mean": [1, 2]}, "image_mean must be three numbers"),
        ({"do_center_crop": False}, "do not give square images"),
        ({"size": {"longest_edge": 224}}, "do not give square images"),
        ({"size": {"shortest_edge": 200}}, "do not give square images"),
        ({"crop_size": 200}, "do not give square images of the model's size, 224"),
        ({"crop_size": {"height": 224, "width": 200}}, "do not give square images"),
    ],
)
def test_other_preprocessing_is_refused(values: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=named) as raised:
        read(tmp_path, "clip", 224, **values)
    assert str(raised.value).startswith(str(tmp_path / "preprocessor_config.json"))


@pytest.mark.parametrize("content", ["[1]", "{"])
def test_a_damaged_file_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(InputError, match=r"not JSON|not the config of an image processor"):
        read_preprocess(tmp_path, "clip", 224)


def test_a_crop_is_in_the_middle_rounded_down_and_palettes_become_rgb_first() -> None:
    columns = Image.fromarray(np.arange(7, dtype=np.uint8)[None].repeat(4, 0))
    found = Resize(4, 4, "nearest", squash=False)(columns)
    assert np.array(found)[0, :, 0].tolist() == [1, 2, 3, 4]
    assert Resize(4, 4, "nearest", squash=True)(columns).size == (4, 4)
    palette = Image.new("P", (8, 8))
    palette.putpalette([0, 0, 0, 200, 0, 0])
    palette.putpixel((0, 0), 1)
    resized = np.array(Resize(4, 4, "bilinear", squash=False)(palette))
    assert resized.shape == (4, 4, 3)
    assert 0 < resized[0, 0, 0] < 200  # mixed, which colours of a palette cannot be


def test_captions_are_padded_and_cut_to_the_models_length(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenize = Tokenizer(tmp_path, 6, len(VOCABULARY))
    start, end = VOCABULARY["<start>"], VOCABULARY["<end>"]
    assert tokenize(["a cat", "a a a a a a a"]).tolist() == [[start, 2, 10, end, 0, 0], [start, 2, 2, 2, 2, end]]
    assert tokenize(["a"]).dtype == torch.int64
    with pytest.raises(InputError, match=r"its tokenizer has 13 tokens, the model has 12"):
        Tokenizer(tmp_path, 6, 12)


def test_a_missing_tokenizer_is_refused_unless_open_clip_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_tokenizer(tmp_path, "clip", 49408)
    for family, vocabulary in (("clip", 13), ("siglip", 49408)):
        with pytest.raises(InputError, match=r"holds no tokenizer .*not OpenAI's\.\nCopy the model's tokenizer"):
            require_tokenizer(tmp_path, family, vocabulary)  # type: ignore[arg-type]
    write_tokenizer(tmp_path)
    require_tokenizer(tmp_path, "clip", 13)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'not installed: pip install "priorkit\[transformers\]"'):
        require_tokenizer(tmp_path, "clip", 13)


def test_a_tokenizer_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": None}))
    with pytest.raises(InputError, match="no token to pad captions with"):
        Tokenizer(tmp_path, 6, len(VOCABULARY))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"its tokenizer cannot be loaded \(\w+: .*\)\.\nCopy the files"):
        Tokenizer(tmp_path, 6, len(VOCABULARY))


def test_code_of_a_folder_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    named = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, **named}))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(InputError, match=r"its tokenizer is a class of its own .*\nUse a folder whose tokenizer"):
        Tokenizer(tmp_path, 6, len(VOCABULARY))
    assert not (tmp_path / "ran").exists()
