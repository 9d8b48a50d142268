"""Priors of diffusers, loaded from folders of models and of pipelines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest
import safetensors.torch
import torch

from priorkit import convert, load_prior
from priorkit.pipeline.errors import FolderError, InputError, SettingsError
from priorkit.prior.model.prior import Prior

from .folders import CONFIG, ECLIPSE, SCHEDULER, make_weights, write_model, write_pipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"


def require_equal(prior: Prior, weights: dict[str, torch.Tensor]) -> None:
    ours = {
        **prior.network.state_dict(),
        "clip_mean": prior.normaliser.mean[None],
        "clip_std": prior.normaliser.to_embed[None],
    }
    assert ours.keys() == weights.keys()
    for name, value in weights.items():
        assert ours[name].dtype == torch.float32
        assert torch.equal(ours[name], value.float()), name


def sample(prior: Prior, **arguments: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    text, states = torch.randn(2, 10, generator=generator), torch.randn(2, 4, 12, generator=generator)
    return prior.sample(text_embed=text, token_states=states, **arguments)


def test_the_folder_of_a_model(tmp_path: Path) -> None:
    prior = load_prior(tmp_path) if (weights := write_model(tmp_path)) else None
    assert prior is not None
    require_equal(prior, weights)
    assert prior.config.diffusion.x0_clamp == "none"
    assert prior.empty is None
    assert sample(prior, steps=3, sampler="unclip").shape == (2, 12)


@pytest.mark.parametrize("name", ["scheduler", "prior_scheduler"])
def test_the_folder_of_a_pipeline(name: str, tmp_path: Path) -> None:
    weights = write_pipeline(tmp_path / "pipeline", scheduler_folder=name)
    if name == "prior_scheduler":  # the other one is then the decoder's
        (tmp_path / "pipeline/scheduler").mkdir()
        (tmp_path / "pipeline/scheduler/scheduler_config.json").write_text('{"prediction_type": "epsilon"}')
    prior = load_prior(tmp_path / "pipeline")
    require_equal(prior, weights)
    assert prior.config.diffusion.clip_sample_range == 5.0


def test_the_folder_of_a_combined_pipeline_and_of_one_without_scheduler(tmp_path: Path) -> None:
    weights = write_pipeline(tmp_path, None)
    (tmp_path / "prior").rename(tmp_path / "prior_prior")
    prior = load_prior(tmp_path)
    require_equal(prior, weights)
    assert prior.config.diffusion.x0_clamp == "none"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_load_as_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = {name: value.to(dtype) for name, value in make_weights().items()}
    write_model(tmp_path, weights=weights, name=WEIGHTS.replace(".safe", ".fp16.safe"))
    require_equal(load_prior(tmp_path), weights)


def test_weights_in_several_files(tmp_path: Path) -> None:
    weights = write_model(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    parts = {f"part-{number}.safetensors": sorted(weights)[number::2] for number in (0, 1)}
    for file, names in parts.items():
        safetensors.torch.save_file({name: weights[name] for name in names}, tmp_path / file)
    index = {"weight_map": {name: file for file, names in parts.items() for name in names}}
    (tmp_path / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    require_equal(load_prior(tmp_path), weights)
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks part-1\.safetensors, which .*index\.json lists"):
        load_prior(tmp_path)


def test_a_remote_folder(tmp_path: Path) -> None:
    weights = write_pipeline(tmp_path)
    fsspec.filesystem("memory").put(str(tmp_path), "/diffusers_remote", recursive=True)
    prior = load_prior("memory://diffusers_remote")
    require_equal(prior, weights)
    assert prior.config.diffusion.clip_sample_range == 5.0


def test_eclipse_samples_in_one_step_and_ignores_statistics(tmp_path: Path) -> None:
    weights = write_model(tmp_path, ECLIPSE)
    without = {name: value for name, value in weights.items() if not name.startswith("clip_")}
    write_model(tmp_path / "without", ECLIPSE, without)
    one, other = load_prior(tmp_path), load_prior(tmp_path / "without")
    require_equal(other, {**without, "clip_mean": torch.zeros(1, 12), "clip_std": torch.ones(1, 12)})
    drawn = sample(one, steps=1, sampler="one-step")
    assert torch.equal(drawn, sample(other, steps=1, sampler="one-step"))
    with pytest.raises(SettingsError, match="use sampler=one-step"):
        sample(one, steps=4, sampler="unclip")


def test_the_clip_is_named_and_not_guessed(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    assert load_prior(tmp_path / "model").config.clip_settings == {}
    clip = {"model": "ViT-B-32", "pretrained": "openai"}
    assert load_prior(tmp_path / "model", clip=clip).config.clip_settings == clip
    with pytest.raises(SettingsError, match="pretrained is needed"):
        load_prior(tmp_path / "model", clip={"model": "ViT-L-14"})
    with pytest.raises(SettingsError, match=r"weights='online': .*which holds one set; use ema"):
        load_prior(tmp_path / "model", weights="online")


def test_convert_writes_a_prior_folder(tmp_path: Path) -> None:
    weights = write_pipeline(tmp_path / "pipeline")
    clip = {"model": "ViT-B-32", "pretrained": "openai"}
    convert(tmp_path / "pipeline", tmp_path / "prior", clip=clip)
    prior = load_prior(tmp_path / "prior")
    require_equal(prior, weights)
    assert prior.config == load_prior(tmp_path / "pipeline", clip=clip).config
    with pytest.raises(SettingsError, match=r"dalle2-pytorch has no prior-transformer; `priorkit export"):
        convert(tmp_path / "pipeline", tmp_path / "out.pth")
    for overwrite in (False, True):
        with pytest.raises(FolderError, match="is a folder of diffusers; choose another"):
            convert(tmp_path / "prior", tmp_path / "pipeline/prior", overwrite=overwrite)


def changed(**changes: Any) -> dict[str, torch.Tensor]:
    weights = {**make_weights(), **changes}
    return {name: value for name, value in weights.items() if value is not None}


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        (changed(clip_std=torch.zeros(1, 12)), "clip_std is 0 everywhere, so this prior has never been trained"),
        (changed(clip_std=None), "does not fit config.json: it lacks clip_std"),
        (changed(extra=torch.ones(1)), "it also holds extra"),
        (
            changed(prd_embedding=torch.ones(1, 1, 7)),
            r"prd_embedding has shape \[1, 1, 7\], config.json says \[",
        ),
        (changed(prd_embedding=torch.full((1, 1, 16), torch.inf)), "prd_embedding contains NaN or infinity"),
        (changed(prd_embedding=torch.ones(1, 1, 16, dtype=torch.int32)), "prd_embedding is I32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_that_do_not_fit_are_named(weights: dict[str, torch.Tensor], named: str, tmp_path: Path) -> None:
    write_model(tmp_path, weights=weights)
    with pytest.raises(InputError, match=named):
        load_prior(tmp_path)


def test_old_files_hold_the_mask_too(tmp_path: Path) -> None:
    write_model(tmp_path, weights=changed(causal_attention_mask=torch.zeros(1, 9, 9)))
    load_prior(tmp_path)


def test_other_folders_of_diffusers_are_named(tmp_path: Path) -> None:
    write_model(tmp_path / "unet", {**CONFIG, "_class_name": "UNet2DConditionModel"}, make_weights())
    with pytest.raises(InputError, match="unet: holds a UNet2DConditionModel of diffusers; priorkit reads its Prior"):
        load_prior(tmp_path / "unet")
    (tmp_path / "decoder").mkdir()
    (tmp_path / "decoder/model_index.json").write_text('{"_class_name": "KandinskyV22Pipeline"}')
    with pytest.raises(InputError, match=r"the pipeline KandinskyV22Pipeline has no folder prior/"):
        load_prior(tmp_path / "decoder")
    write_model(tmp_path / "pickle")
    (tmp_path / "pickle" / WEIGHTS).rename(tmp_path / "pickle/diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match=r"has no diffusion_.*; diffusion_pytorch_model\.bin is no safetensors file"):
        load_prior(tmp_path / "pickle")
    (tmp_path / "list").mkdir()
    (tmp_path / "list/config.json").write_text("[]")
    with pytest.raises(InputError, match=r"list/config\.json: holds a list, not a JSON object"):
        load_prior(tmp_path / "list")


def test_nothing_of_diffusers_is_imported(tmp_path: Path) -> None:
    write_pipeline(tmp_path)
    code = (
        "import sys, priorkit; priorkit.load_prior(sys.argv[1]); "
        "print({'diffusers', 'transformers', 'peft'} & sys.modules.keys())"
    )
    shown = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True)
    assert shown.stdout == "set()\n"


_MEASURE = """
import sys
import priorkit

def peak():
    # not ru_maxrss, which a new process takes over from the one that started it
    return next(int(line.split()[1]) * 1024 for line in open('/proc/self/status') if line.startswith('VmHWM'))

large, small, target = sys.argv[1:]
priorkit.load_prior(small)  # imports, and what torch allocates once
before = peak()
prior = priorkit.load_prior(large)
weights = sum(value.numel() * 4 for value in prior.network.parameters())
loaded = peak()
del prior
priorkit.convert(large, f"{target}/prior")
priorkit.export(f"{target}/prior", f"{target}/exported")
print((loaded - before) / weights, (peak() - before) / weights, weights)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_peak_of_memory_is_the_size_of_the_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    config = {**CONFIG, "num_attention_heads": 16, "attention_head_dim": 32, "num_layers": 14, "num_embeddings": 77}
    weights = {name: value.to(dtype) for name, value in make_weights(config).items()}
    write_model(tmp_path / "large", config, weights)
    write_model(tmp_path / "small")
    del weights
    arguments = [str(tmp_path / name) for name in ("large", "small", "target")]
    shown = subprocess.run(
        [sys.executable, "-c", _MEASURE, *arguments], check=True, capture_output=True, text=True
    )  # fmt: skip
    loading, writing, size = map(float, shown.stdout.split())
    print(f"{loading:.3f} to load, {writing:.3f} to convert and export {size / 1e6:.0f} MB")
    assert size > 150e6
    assert 0.9 < loading <= writing <= 1.2


def test_the_scheduler_must_be_the_priors(tmp_path: Path) -> None:
    write_pipeline(tmp_path, {**SCHEDULER, "prediction_type": "epsilon"})
    with pytest.raises(InputError, match=r"scheduler_config\.json: prediction_type=epsilon"):
        load_prior(tmp_path)
