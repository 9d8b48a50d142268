"""Decoders of diffusers with random weights, small enough to draw a picture in a moment, and files of embeddings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

DIM = 12
"""Embedding size of every tiny decoder."""
_TEXT, _CHANNELS = 24, (32, 64)
"""Width of the text towers, and channels of the UNets and autoencoders."""
_WORDS = {"<|startoftext|>": 0, "<|endoftext|>": 1, **{f"{letter}</w>": 2 + i for i, letter in enumerate("abcdxyz")}}


def write_embeds(
    path: Path, target: str | None, rows: int = 3, *, dim: int = DIM, norm: str = "raw", prompts: Any = None,
    tensors: dict[str, torch.Tensor] | None = None, metadata: dict[str, str] | None = None,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Write a file as `priorkit sample --for TARGET` does, and return its tensors."""
    generator = torch.Generator().manual_seed(rows)
    shape = (rows, 1, dim) if target == "ip-adapter" else (rows, dim)
    made = {"image_embed": 5 * torch.randn(shape, generator=generator)}
    if target in ("kandinsky-2.2", "kandinsky-2.1"):
        made["negative_image_embed"] = 5 * torch.randn(1, dim, generator=generator).expand(shape).contiguous()
    if target == "ip-adapter":
        made["negative_image_embed"] = torch.zeros(shape)
    described = {
        "norm": norm, "for": target, "clip": {"fingerprint": "0" * 64},
        "clip_settings": {"model": "ViT-B-32", "pretrained": "openai"}, "prior": "1" * 64,
        "prompts": [f"a {'bcd'[row % 3]}" for row in range(min(rows, 64))] if prompts is None else prompts,
    }  # fmt: skip
    made = made if tensors is None else tensors
    safetensors.torch.save_file(made, path, {"priorkit": json.dumps(described)} if metadata is None else metadata)
    return made


def write_pipeline(target: str, folder: Path) -> Path:
    """Write the pipeline of a decoder with random weights, and return the folder."""
    torch.manual_seed(0)
    pipeline = _BUILDERS[target]()
    with torch.no_grad():
        for module in pipeline.components.values():
            if isinstance(module, torch.nn.Module):
                for value in module.parameters():
                    value.add_(0.02 * torch.randn_like(value))
    pipeline.save_pretrained(folder)
    if target == "karlo":  # name this module as the index of the published pipeline does
        index = folder / "model_index.json"
        changed = {**json.loads(index.read_text()), "text_proj": ["unclip", "UnCLIPTextProjModel"]}
        index.write_text(json.dumps(changed, indent=1))
    return folder


def write_ip_adapter(path: Path, dim: int = DIM, *, xl: bool = False, plus: bool = False) -> Path:
    """Write the weights of an IP-Adapter for the tiny Stable Diffusion, or for the tiny Stable Diffusion XL."""
    torch.manual_seed(1)
    unet = _unet(**(_XL if xl else _SD))
    width = unet.config.cross_attention_dim
    image_proj = {
        "proj.weight": torch.randn(4 * width, dim), "proj.bias": torch.randn(4 * width),
        "norm.weight": torch.ones(width), "norm.bias": torch.zeros(width),
    }  # fmt: skip
    if plus:
        image_proj = {"latents": torch.randn(1, 4, width)}
    crossed = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    tensors = {f"image_proj.{name}": value for name, value in image_proj.items()}
    for number, name in enumerate(crossed):
        out = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for part in ("k", "v"):
            tensors[f"ip_adapter.{2 * number + 1}.to_{part}_ip.weight"] = torch.randn(out, width)
    safetensors.torch.save_file(tensors, path)
    return path


_SIMPLE = {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "resnet_time_scale_shift": "scale_shift",
}
_CROSS_ATTENTION = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
_SD: dict[str, Any] = {"cross_attention_dim": _TEXT, **_CROSS_ATTENTION}
_XL: dict[str, Any] = {
    "cross_attention_dim": 2 * _TEXT, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + _TEXT, "use_linear_projection": True, **_CROSS_ATTENTION,
}  # fmt: skip


def _unet(**config: Any) -> Any:
    from diffusers import UNet2DConditionModel

    common = {"block_out_channels": _CHANNELS, "layers_per_block": 1, "attention_head_dim": 8, "norm_num_groups": 8}
    return UNet2DConditionModel(**{**common, "sample_size": 16, "in_channels": 4, "out_channels": 4, **config})


def _movq() -> Any:
    from diffusers import VQModel

    return VQModel(
        block_out_channels=(32,) * 4, down_block_types=(*("DownEncoderBlock2D",) * 3, "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", *("UpDecoderBlock2D",) * 3), latent_channels=4, norm_num_groups=8,
        norm_type="spatial", num_vq_embeddings=12, vq_embed_dim=4,
    )  # fmt: skip


def _vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=_CHANNELS, down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=8,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
    )  # fmt: skip


def _learned_ddpm() -> Any:
    from diffusers import DDPMScheduler

    return DDPMScheduler(variance_type="learned_range", beta_schedule="linear", clip_sample=True)


def _text_config(width: int = _TEXT) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(_WORDS), hidden_size=width, intermediate_size=37, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, projection_dim=width, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer(vocab=_WORDS, merges=[], model_max_length=16)


def _image_tower() -> dict[str, Any]:
    """An image encoder and its preprocessing, which decoders load and never use here."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=16, projection_dim=DIM, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16,
        intermediate_size=37,
    )  # fmt: skip
    processor = CLIPImageProcessor(crop_size=32, size=32)
    return {"image_encoder": CLIPVisionModelWithProjection(config), "feature_extractor": processor}


def _kandinsky22() -> Any:
    from diffusers import KandinskyV22Pipeline

    unet = _unet(
        out_channels=8, addition_embed_type="image", encoder_hid_dim=DIM, encoder_hid_dim_type="image_proj",
        cross_attention_dim=_TEXT, **_SIMPLE,
    )  # fmt: skip
    return KandinskyV22Pipeline(unet=unet, scheduler=_learned_ddpm(), movq=_movq())


def _kandinsky21() -> Any:
    from diffusers import KandinskyPipeline
    from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
    from transformers import XLMRobertaTokenizer

    words = ["<s>", "<pad>", "</s>", "<unk>", *(f"▁{letter}" for letter in "abcdxyz"), "<mask>"]
    config = MCLIPConfig(
        transformerDimSize=_TEXT, imageDimSize=DIM, vocab_size=len(words), hidden_size=_TEXT, intermediate_size=37,
        num_attention_heads=2, num_hidden_layers=1, max_position_embeddings=80, pad_token_id=1,
    )  # fmt: skip
    unet = _unet(
        out_channels=8, addition_embed_type="text_image", encoder_hid_dim=_TEXT, cross_attention_dim=DIM,
        encoder_hid_dim_type="text_image_proj", **_SIMPLE,
    )  # fmt: skip
    return KandinskyPipeline(
        text_encoder=MultilingualCLIP(config).eval(), unet=unet, scheduler=_learned_ddpm(), movq=_movq(),
        tokenizer=XLMRobertaTokenizer(vocab=[(word, -float(i)) for i, word in enumerate(words)], model_max_length=77),
    )  # fmt: skip


def _karlo() -> Any:
    from diffusers import UnCLIPImageVariationPipeline, UnCLIPScheduler, UNet2DModel
    from diffusers.pipelines.deprecated.unclip import UnCLIPTextProjModel
    from transformers import CLIPTextModelWithProjection

    def super_resolution() -> Any:
        return UNet2DModel(
            sample_size=32, in_channels=6, out_channels=3, block_out_channels=_CHANNELS, layers_per_block=1,
            norm_num_groups=8, down_block_types=("ResnetDownsampleBlock2D",) * 2,
            up_block_types=("ResnetUpsampleBlock2D",) * 2,
        )  # fmt: skip

    text_proj = UnCLIPTextProjModel(clip_embeddings_dim=DIM, time_embed_dim=4 * _CHANNELS[0], cross_attention_dim=_TEXT)
    decoder = _unet(in_channels=3, out_channels=6, class_embed_type="identity", cross_attention_dim=_TEXT, **_SIMPLE)
    return UnCLIPImageVariationPipeline(
        decoder=decoder, text_proj=text_proj, text_encoder=CLIPTextModelWithProjection(_text_config(DIM)),
        tokenizer=_tokenizer(), super_res_first=super_resolution(), super_res_last=super_resolution(),
        decoder_scheduler=UnCLIPScheduler(variance_type="learned_range", prediction_type="epsilon"),
        super_res_scheduler=UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="epsilon"),
        **_image_tower(),
    )  # fmt: skip


def _stable_unclip() -> Any:
    from diffusers import DDIMScheduler, DDPMScheduler, StableUnCLIPImg2ImgPipeline
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
    from transformers import CLIPTextModel

    unet = _unet(
        class_embed_type="projection", projection_class_embeddings_input_dim=2 * DIM, cross_attention_dim=_TEXT,
        use_linear_projection=True, **_CROSS_ATTENTION,
    )  # fmt: skip
    return StableUnCLIPImg2ImgPipeline(
        image_normalizer=StableUnCLIPImageNormalizer(DIM), unet=unet, vae=_vae(), tokenizer=_tokenizer(),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        text_encoder=CLIPTextModel(_text_config()), **_image_tower(),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction", steps_offset=1),
    )  # fmt: skip


def _stable_diffusion() -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextModel

    return StableDiffusionPipeline(
        unet=_unet(**_SD), vae=_vae(), tokenizer=_tokenizer(),
        text_encoder=CLIPTextModel(_text_config()), scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _stable_diffusion_xl() -> Any:
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    return StableDiffusionXLPipeline(
        unet=_unet(**_XL), vae=_vae(), scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        text_encoder=CLIPTextModel(_text_config()), text_encoder_2=CLIPTextModelWithProjection(_text_config()),
        tokenizer=_tokenizer(), tokenizer_2=_tokenizer(), add_watermarker=False,
    )  # fmt: skip


_BUILDERS: dict[str, Callable[[], Any]] = {
    "kandinsky-2.2": _kandinsky22,
    "kandinsky-2.1": _kandinsky21,
    "karlo": _karlo,
    "stable-unclip": _stable_unclip,
    "ip-adapter": _stable_diffusion,
}
TARGETS = tuple(_BUILDERS)
"""Names of the decoders, each of which has a pipeline."""
_BUILDERS["xl"] = _stable_diffusion_xl  # the other pipeline of ip-adapter
