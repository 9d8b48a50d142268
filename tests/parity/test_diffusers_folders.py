"""Folders: diffusers loads those that are written here, and those that it writes are loaded here."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from diffusers import KandinskyV22PriorPipeline, UnCLIPScheduler
from diffusers import PriorTransformer as DiffusersPrior

from priorkit import convert, export, load_prior

from ..unit.pipeline.clip.convert.conftest import write_clip
from .unclip import make_diffusers_prior

SIZES = {
    "num_attention_heads": 3, "attention_head_dim": 8, "num_layers": 2, "embedding_dim": 24, "num_embeddings": 12,
}  # fmt: skip
CONFIGS = [
    SIZES,
    {**SIZES, "embedding_proj_dim": 10, "norm_in_type": "layer", "embedding_proj_norm_type": "layer"},
    {**SIZES, "time_embed_dim": 14, "time_embed_act_fn": "gelu", "dropout": 0.1},
]
PROMPTS = ["a red square", "blue circle of the cat", "photo"]


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


def write_theirs(folder: Path, theirs: Any, **options: Any) -> None:
    """The folder of a pipeline, by diffusers alone."""
    theirs.save_pretrained(folder / "prior", **options)
    scheduler = UnCLIPScheduler(
        variance_type="fixed_small_log", prediction_type="sample", num_train_timesteps=1000, clip_sample=True,
        clip_sample_range=2.0,
    )  # fmt: skip
    scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text('{"_class_name": "KandinskyV22PriorPipeline"}')


@pytest.mark.parametrize("config", CONFIGS)
def test_there_and_back_is_bit_equal_and_strict(config: dict[str, Any], tmp_path: Path) -> None:
    theirs = make_diffusers_prior(1, **config)
    write_theirs(tmp_path / "theirs", theirs)
    convert(tmp_path / "theirs", tmp_path / "prior")
    export(tmp_path / "prior", tmp_path / "ours")
    back, info = DiffusersPrior.from_pretrained(
        tmp_path / "ours", subfolder="prior", output_loading_info=True, low_cpu_mem_usage=False
    )
    assert not any(info.values())
    assert {name: value for name, value in back.config.items() if not name.startswith("_")} == {
        name: value for name, value in theirs.config.items() if not name.startswith("_")
    }
    expected = theirs.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in back.state_dict().items())

    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(3, 24, generator=generator)
    text = torch.randn(3, theirs.embedding_proj.in_features, generator=generator)
    states = torch.randn(3, 12, 24, generator=generator)
    mask = torch.arange(12) < torch.tensor([[3], [12], [7]])
    steps = torch.tensor([5, 500, 999])
    found = load_prior(tmp_path / "prior").network(
        noisy, steps, text_embed=text, token_states=states * mask[:, :, None]
    )
    wanted = back(noisy, steps, text, states, mask).predicted_image_embedding
    assert difference(found, wanted) <= 3e-6


@pytest.mark.parametrize("options", [{"variant": "fp16"}, {"max_shard_size": "20KB"}])
def test_what_diffusers_saves_is_read(options: dict[str, Any], tmp_path: Path) -> None:
    theirs = make_diffusers_prior(2, **SIZES).half()
    write_theirs(tmp_path, theirs, **options)
    names = [path.name for path in (tmp_path / "prior").iterdir()]
    assert "diffusion_pytorch_model.safetensors" not in names
    ours, expected = load_prior(tmp_path), theirs.state_dict()
    assert all(torch.equal(value, expected[name].float()) for name, value in ours.network.state_dict().items())
    export(tmp_path, tmp_path / "ours", dtype="float16")
    back = DiffusersPrior.from_pretrained(tmp_path / "ours/prior", torch_dtype=torch.float16).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in back.items())


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A CLIP whose token states are as wide as its embeddings, as `PriorTransformer` needs them."""
    folder = tmp_path_factory.mktemp("clip")
    write_clip(folder, projection=24)
    return folder, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(("scale", "negative"), [(1.0, None), (4.0, None), (4.0, ["the cat"] * 3)])
def test_a_pipeline_of_the_folder_and_four_components(
    scale: float, negative: list[str] | None, clip: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, tokenizer = clip
    tokenizer.model_max_length = 12
    write_theirs(tmp_path / "theirs", make_diffusers_prior(3, **SIZES))
    convert(tmp_path / "theirs", tmp_path / "prior", clip={"model": f"local-dir:{folder}"})
    export(tmp_path / "prior", tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers, about half of a CLIP in a whole one's folder
        pipeline = KandinskyV22PriorPipeline.from_pretrained(
            tmp_path / "ours",
            text_encoder=transformers.CLIPTextModelWithProjection.from_pretrained(folder, projection_dim=24),
            image_encoder=transformers.CLIPVisionModelWithProjection.from_pretrained(folder, projection_dim=24),
            tokenizer=tokenizer,
            image_processor=transformers.CLIPImageProcessor.from_pretrained(folder),
        )
    pipeline.set_progress_bar_config(disable=True)
    result = pipeline(
        PROMPTS, negative_prompt=negative, num_inference_steps=25, guidance_scale=scale,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    drawn = load_prior(tmp_path / "prior").sample(
        PROMPTS if negative is None else PROMPTS + negative,
        negative_prompt=None if negative is None else 2 * negative,
        steps=25, sampler="unclip", guidance_scale=scale, generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    assert difference(drawn[:3], result.image_embeds) <= 5e-6
    if negative is not None:
        assert difference(drawn[3:], result.negative_image_embeds) <= 5e-6
