"""Tiny models of transformers with random weights, their tokenizers, and archives of TorchScript."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import open_clip
import pytest
import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers, processors

from priorkit.pipeline.clip.settings import ClipSettings, EncoderSettings

WORDS = ["a", "red", "blue", "square", "circle", "photo", "of", "the", "cat"]
VOCABULARY = {name: number for number, name in enumerate(["<pad>", "<unk>", *WORDS, "<start>", "<end>"])}
CAPTIONS = ["a red square", "", "the photo of a cat " * 9, "blue", "a  red\tunknown circle"]
CLIP_TEXT = {
    "vocab_size": len(VOCABULARY), "hidden_size": 24, "intermediate_size": 56, "num_hidden_layers": 2,
    "num_attention_heads": 3, "max_position_embeddings": 12, "eos_token_id": VOCABULARY["<end>"],
    "bos_token_id": VOCABULARY["<start>"], "pad_token_id": 0, "layer_norm_eps": 1e-5,
}  # fmt: skip
CLIP_VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 30,
    "patch_size": 10,
}  # fmt: skip
SIGLIP_TEXT = {
    "vocab_size": len(VOCABULARY), "hidden_size": 24, "intermediate_size": 90, "num_hidden_layers": 2,
    "num_attention_heads": 3, "max_position_embeddings": 12, "projection_size": 36,
}  # fmt: skip
SIGLIP_VISION = {
    "hidden_size": 36, "intermediate_size": 97, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 30,
    "patch_size": 10,
}  # fmt: skip


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Fill all weights with random values, also those that begin as 0 or 1, so that mixing them up shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator) * 0.2
            value.copy_(noise + 1 if "norm" in name and name.endswith("weight") else noise)
    return model.eval()


def write_tokenizer(folder: Path, end: str = "<end>") -> None:
    """Write a tokenizer of words, which surrounds captions by a start and an end as CLIP's does."""
    fast = tokenizers.Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(name, VOCABULARY[name]) for name in ("<start>", end)]
    fast.post_processor = processors.TemplateProcessing(single=f"<start> $A {end}", special_tokens=special)
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="<pad>", unk_token="<unk>", bos_token="<start>", eos_token="<end>",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    wrapped.save_pretrained(folder)


def write_clip(
    folder: Path, *, text: dict[str, Any] | None = None, end: str = "<end>", projection: int = 20, **vision: Any
) -> Any:
    """Write a CLIP with its processor and tokenizer, and return the model."""
    config = transformers.CLIPConfig(
        text_config={**CLIP_TEXT, **(text or {})}, vision_config={**CLIP_VISION, **vision}, projection_dim=projection
    )
    model = randomise(transformers.CLIPModel(config))
    model.save_pretrained(folder)  # type: ignore[operator]
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 34}, crop_size={"height": 30, "width": 30}, image_mean=[0.4, 0.5, 0.6],
        image_std=[0.2, 0.3, 0.4],
    )  # fmt: skip
    processor.save_pretrained(folder)
    write_tokenizer(folder, end)
    return model


def write_siglip(folder: Path) -> Any:
    """Write a SigLIP with its processor and tokenizer, and return the model."""
    config = transformers.SiglipConfig(text_config=SIGLIP_TEXT, vision_config=SIGLIP_VISION)
    model = randomise(transformers.SiglipModel(config))
    model.save_pretrained(folder)  # type: ignore[operator]
    transformers.SiglipImageProcessor(size={"height": 30, "width": 30}, resample=2).save_pretrained(folder)
    write_tokenizer(folder)
    return model


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Folder of a tiny CLIP of transformers, and the model."""
    folder = tmp_path_factory.mktemp("clip")
    return folder, write_clip(folder)


@pytest.fixture(scope="session")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Folder of a tiny SigLIP of transformers, and the model."""
    folder = tmp_path_factory.mktemp("siglip")
    return folder, write_siglip(folder)


def encoder_settings(model: str | Path, **changed: Any) -> EncoderSettings:
    name = f"local-dir:{model}" if isinstance(model, Path) else model
    clip = ClipSettings(model=name, **changed.pop("clip", {}))
    return EncoderSettings(clip=clip, device="cpu", threads=1, batch_size=2, **changed)


OPENAI_CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}


def write_archive(path: Path, config: dict[str, Any] = OPENAI_CONFIG, *, constants: bool = True) -> Any:
    """Write a TorchScript archive in the form of OpenAI's, and return the scripted model."""
    model = randomise(open_clip.CLIP(**config))
    if constants:
        for name, value in (("input_resolution", 32), ("context_length", 12), ("vocab_size", 49408)):
            if hasattr(model, name):
                delattr(model, name)
            model.register_buffer(name, torch.tensor(value))
    images, texts = torch.zeros(2, 3, 32, 32), torch.zeros(2, 12, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace_module(model, {"encode_image": (images,), "encode_text": (texts,)})
        torch.jit.save(traced, str(path))
        return torch.jit.load(str(path))


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Archive `ViT.pt` in the form of OpenAI's, and the scripted model; for reading only."""
    path = tmp_path_factory.mktemp("archive") / "ViT.pt"
    return path, write_archive(path)


@pytest.fixture(scope="session")
def other_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Archive in another form, with another activation; for reading only."""
    path = tmp_path_factory.mktemp("other_archive") / "other.pt"
    write_archive(path, {**OPENAI_CONFIG, "quick_gelu": False}, constants=False)
    return path


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def change_json(path: Path, **values: Any) -> None:
    """Change values of a JSON file; None removes a key."""
    content = {**read_json(path), **values}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
