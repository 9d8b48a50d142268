"""A CLIP of transformers and an archive of OpenAI through the chain: embed, train, and sample captions again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import priorkit
from priorkit.pipeline.clip.settings import ClipSettings
from priorkit.pipeline.contract.manifest import require_manifest
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.embed.stage import embed
from priorkit.pipeline.errors import FolderError, InputError
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.prior.interchange.load import load_prior
from priorkit.prior.train.stage import train

from ..conftest import COLOURS, picture
from ..unit.pipeline.clip.convert.conftest import write_archive, write_clip, write_siglip
from .synthetic import SMALL_TRAIN, changed

ROWS = 24
CAPTIONS = [f"a {COLOURS[index % 8]} square" for index in range(ROWS)]


@pytest.fixture
def images(tmp_path: Path) -> str:
    """Folder of images and captions."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index, caption in enumerate(CAPTIONS):
        (folder / f"{index:02d}.jpg").write_bytes(picture(index))
        (folder / f"{index:02d}.txt").write_text(caption)
    return str(folder)


def settings(model: str) -> EmbedSettings:
    return EmbedSettings(clip=ClipSettings(model=model), token_states=True, batch_size=8, threads=1, device="cpu")


@torch.no_grad()
def transformers_features(model: Any, folder: Path) -> torch.Tensor:
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        CAPTIONS, padding="max_length", max_length=12, truncation=True, return_tensors="pt"
    )
    output = model.get_text_features(input_ids=tokens["input_ids"])
    features = output if isinstance(output, torch.Tensor) else output.pooler_output
    return torch.nn.functional.normalize(torch.as_tensor(features), dim=-1)


@pytest.mark.parametrize("kind", ["clip", "siglip", "openai"])
def test_a_prior_loads_its_clip_by_the_recorded_settings(
    kind: str, images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model: Any = None
    if kind == "openai":
        write_archive(tmp_path / "ViT.pt")
        name, size = "openai_clip:ViT.pt", 16
    else:
        model = write_clip(tmp_path / "model") if kind == "clip" else write_siglip(tmp_path / "model")
        name, size = "local-dir:model", 20 if kind == "clip" else 36
    embed(images, "embeddings", settings(name))
    stored = np.load("embeddings/text_emb/text_emb_0000.npy").astype(np.float32)
    assert stored.shape == (ROWS, size)
    if model is not None:
        np.testing.assert_allclose(stored, transformers_features(model, tmp_path / "model"), atol=2e-3)
    small = changed(SMALL_TRAIN, network__width=16, network__depth=1, network__max_text_len=12, steps=2, batch_size=8)
    train("embeddings", "prior", small, ReadSettings(validation_fraction=0.3))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    prior = load_prior(str(tmp_path / "prior"))
    assert prior.config.clip_settings["model"] == name.replace(":", f":{tmp_path}/", 1)
    assert prior.sample(CAPTIONS[:2], steps=2, seed=0).shape == (2, size)


def test_a_folder_is_not_extended_with_another_tokenizer(images: str, tmp_path: Path) -> None:
    write_clip(tmp_path / "model")
    embeddings = str(tmp_path / "embeddings")
    embed(images, embeddings, settings(f"local-dir:{tmp_path / 'model'}"))
    shutil.copytree(tmp_path / "model", tmp_path / "copy")
    result = embed(images, embeddings, settings(f"local-dir:{tmp_path / 'copy'}"))
    assert result.done_now == 0
    text = (tmp_path / "copy/tokenizer.json").read_text()
    (tmp_path / "copy/tokenizer.json").write_text(text.replace('"red"', '"tan"'))
    (Path(images) / "99.jpg").write_bytes(picture(99))
    (Path(images) / "99.txt").write_text("red")
    with pytest.raises(FolderError, match=r"made with another CLIP \(processor_sha256"):
        embed(images, embeddings, settings(f"local-dir:{tmp_path / 'copy'}"))
    assert "processor_sha256" in require_manifest(Store(embeddings), "embed").about["clip"]


def test_a_name_of_openai_asks_for_openais_weights(
    images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        InputError, match=r"embed\.clip\.model=ViT-L-14-quickgelu, pretrained=openai: its files are not on"
    ):
        priorkit.embed(images, str(tmp_path / "embeddings"), settings("ViT-L/14"))
