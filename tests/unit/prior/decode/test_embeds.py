"""Files of embeddings: what is read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from priorkit.pipeline.contract.empty_inputs import EmptyInputs
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import InputError
from priorkit.prior.decode.decoders import DECODER_CLASSES
from priorkit.prior.decode.embeds import EmbedsFile
from priorkit.prior.model.config import NormStatistics, PriorConfig, build_network, build_normaliser
from priorkit.prior.model.folder import save_prior
from priorkit.prior.network.settings import NetworkSettings
from priorkit.prior.objective.settings import DiffusionSettings

from ....tiny_decoders import DIM, write_embeds
from ..commands.running import good


def refused(path: Path, named: str, target: str | None = None) -> None:
    with pytest.raises(InputError) as error:
        EmbedsFile(str(path), target)
    text = str(error.value)
    assert named in text
    assert str(path) in text or "--for" in text
    assert text.count("\n") < 3


@pytest.mark.parametrize("target", ["kandinsky-2.2", "karlo", "ip-adapter"])
def test_rows_and_what_is_said_of_them(target: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    written = write_embeds(path, target, rows=5)
    file = EmbedsFile(str(path))
    assert (file.target, file.rows, file.embed_dim) == (target, 5, DIM)
    assert file.prompts == ["a b", "a c", "a d", "a b", "a c"]
    image, negative = file.take(1, 4)
    assert torch.equal(image, written["image_embed"][1:4])
    if target == "karlo":
        assert negative is None
    else:
        assert negative is not None
        assert torch.equal(negative, written["negative_image_embed"][1:4])


def test_the_decoder_is_that_of_the_file_or_of_the_option(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_embeds(path, "karlo")
    assert EmbedsFile(str(path), "karlo").target == "karlo"
    refused(path, "sampled for karlo, not kandinsky-2.2; leave --for out", "kandinsky-2.2")
    refused(path, "--for dalle: decode draws with kandinsky-2.2, ", "dalle")
    write_embeds(path, None)
    assert EmbedsFile(str(path), "stable-unclip").target == "stable-unclip"
    refused(path, "does not say its decoder; give --for, one of kandinsky-2.2, ")
    write_embeds(path, "clip-retrieval", norm="unit")
    refused(path, "sampled for clip-retrieval: decode draws with kandinsky-2.2, ")


def test_unit_vectors_are_refused_with_the_command(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_embeds(path, None, norm="unit")
    refused(path, f"priorkit sample PRIOR CAPTION --for karlo --output {path}", "karlo")
    write_embeds(path, "karlo", norm="none")
    refused(path, "norm 'none', and karlo takes raw ones")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "cannot be read as safetensors"),
        (b"\x89PNG\r\n" + b"\0" * 100, "cannot be read as safetensors"),
        ((2**62).to_bytes(8, "little") + b"{}", "cannot be read as safetensors"),
        (None, "no such file; `priorkit sample --for DECODER"),
    ],
)
def test_a_damaged_or_missing_file_is_named(content: bytes | None, named: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    if content is not None:
        path.write_bytes(content)
    refused(path, named)


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_embeds(path, "karlo")
    path.write_bytes(path.read_bytes()[:-8])
    refused(path, "cannot be read as safetensors")


def test_an_array_has_no_norm_and_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, DIM), np.float32))
    refused(tmp_path / "a.npy", "decode reads .safetensors, which also holds the norm")


@pytest.mark.parametrize("metadata", [{}, {"priorkit": "{"}, {"priorkit": "[1]"}, {"format": "pt"}])
def test_a_file_of_another_program_is_refused(metadata: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_embeds(path, "karlo", metadata=metadata)
    refused(path, "not a file of `priorkit sample`")


@pytest.mark.parametrize(
    ("target", "tensors", "named"),
    [
        ("karlo", {"x": torch.zeros(2, DIM)}, "not a file of `priorkit sample`"),
        ("karlo", {"image_embed": torch.zeros(2, 1, DIM)}, "has shape [2, 1, 12], and karlo takes [rows, size]"),
        ("ip-adapter", {"image_embed": torch.zeros(2, DIM)}, "ip-adapter takes [rows, images, size]"),
        ("karlo", {"image_embed": torch.zeros(0, DIM)}, "has shape [0, 12]"),
        ("karlo", {"image_embed": torch.zeros(2, DIM, dtype=torch.int64)}, "has values of type I64"),
        (
            "kandinsky-2.2",
            {"image_embed": torch.zeros(2, DIM), "negative_image_embed": torch.zeros(1, DIM)},
            "negative_image_embed has shape [1, 12], and image_embed [2, 12]",
        ),
    ],
)
def test_wrong_tensors_are_named(target: str, tensors: dict[str, Any], named: str, tmp_path: Path) -> None:
    write_embeds(tmp_path / "a.safetensors", target, tensors=tensors)
    refused(tmp_path / "a.safetensors", named)


def test_a_value_that_is_not_finite_is_found_when_its_row_is_read(tmp_path: Path) -> None:
    embeds = torch.zeros(3, DIM)
    embeds[2, 5] = torch.nan
    write_embeds(tmp_path / "a.safetensors", "karlo", tensors={"image_embed": embeds})
    file = EmbedsFile(str(tmp_path / "a.safetensors"))
    file.take(0, 2)
    with pytest.raises(InputError, match="image_embed has values that are not finite"):
        file.take(2, 3)


def test_a_missing_negative_and_another_size_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_embeds(path, "kandinsky-2.2", tensors={"image_embed": torch.zeros(2, DIM)})
    file = EmbedsFile(str(path))
    with pytest.raises(InputError, match=r"has no negative_image_embed, which kandinsky-2\.2 needs\.\nSample again"):
        file.require_negatives()
    file.require_dim(DIM, "decoder")
    with pytest.raises(InputError, match="its embeddings have 12 values, and decoder takes 1280"):
        file.require_dim(1280, "decoder")


def test_prompts_may_be_missing(tmp_path: Path) -> None:
    described = {"norm": "raw", "for": "karlo"}
    write_embeds(tmp_path / "a.safetensors", "karlo", metadata={"priorkit": json.dumps(described)})
    assert EmbedsFile(str(tmp_path / "a.safetensors")).prompts == []


@pytest.mark.parametrize(
    ("target", "clip", "size"),
    [
        ("kandinsky-2.2", ("ViT-bigG-14", "laion2b_s39b_b160k"), 1280),
        ("kandinsky-2.1", ("ViT-L-14", "openai"), 768),
        ("karlo", ("ViT-L-14", "openai"), 768),
        ("stable-unclip", ("ViT-H-14", "laion2b_s32b_b79k"), 1024),
        ("ip-adapter", ("ViT-H-14", "laion2b_s32b_b79k"), 1024),
        ("clip-retrieval", ("ViT-L-14", "openai"), 768),
    ],
)
def test_the_files_of_sample_are_read(target: str, clip: tuple[str, str], size: int, tmp_path: Path) -> None:
    config = PriorConfig(
        embed_dim=size, token_width=None, network=NetworkSettings(width=16, depth=1, heads=2),
        diffusion=DiffusionSettings(timesteps=10),
        clip={}, clip_settings=dict(zip(("model", "pretrained"), clip, strict=True)),
        image_norm=NormStatistics(mean=20.0, std=1.0),
    )  # fmt: skip
    empty = EmptyInputs(np.full(size, 0.5, np.float32), np.zeros(size, np.float32), None)
    network, normaliser = build_network(config), build_normaliser(config)
    save_prior(Store(str(tmp_path / "prior")).create, config, network, normaliser, empty)
    np.save(tmp_path / "text.npy", np.eye(3, size, dtype=np.float32))
    output, sources = tmp_path / "a.safetensors", ("--embeddings", tmp_path / "text.npy", "--steps", "2")
    good("sample", tmp_path / "prior", *sources, "--for", target, "--output", output, "--device", "cpu")
    if target == "clip-retrieval":
        refused(output, "sampled for clip-retrieval: decode draws with")
        return
    file = EmbedsFile(str(output))
    assert (file.target, file.rows, file.embed_dim, len(file.prompts)) == (target, 3, size, 3)
    image, negative = file.take(0, 3)
    torch.testing.assert_close(image.norm(dim=-1).flatten(), torch.full((3,), 20.0))
    if DECODER_CLASSES[file.target].has_negative:
        file.require_negatives()
        assert negative is not None
        assert (negative == (0.0 if target == "ip-adapter" else 0.5)).all()
    else:
        assert negative is None


@pytest.mark.parametrize(("pretrained", "fits"), [("openai", True), ("laion2b_s32b_b82k", False)])
def test_the_clip_of_a_file_for_no_decoder_is_compared(pretrained: str, fits: bool, tmp_path: Path) -> None:
    described = {
        "norm": "raw",
        "for": None,
        "clip": {},
        "clip_settings": {"model": "ViT-L-14", "pretrained": pretrained},
    }
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"image_embed": torch.ones(2, 768)}, path, {"priorkit": json.dumps(described)})
    if fits:
        assert EmbedsFile(str(path), "karlo").target == "karlo"
    else:
        refused(path, "of the CLIP ViT-L-14 (laion2b_s32b_b82k), and karlo takes those of ViT-L-14 (openai", "karlo")
