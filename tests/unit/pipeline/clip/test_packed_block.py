"""Packed blocks compared with open_clip's blocks in float64, and blocks that are not replaced."""

from __future__ import annotations

import copy
from typing import Any

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import nn

from priorkit.pipeline.clip import packed_block
from priorkit.pipeline.clip.packed_block import PackedBlock, pack_blocks
from priorkit.pipeline.compute.onednn import packing_available

WIDTH, HEADS = 24, 4
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def block(dtype: torch.dtype = torch.float32, **options: Any) -> ResidualAttentionBlock:
    torch.manual_seed(0)
    made = ResidualAttentionBlock(WIDTH, HEADS, **options)
    for parameter in made.parameters():  # biases and norms are 0 and 1 at first, and would hide a mistake
        nn.init.normal_(parameter, std=0.3)
    return made.to(dtype).eval()


def infer(module: nn.Module, *values: torch.Tensor, **options: Any) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = module(*values, **options)
    return result


def is_packed(module: nn.Module) -> bool:
    return isinstance(module.forward, PackedBlock)


def causal(batch: int) -> torch.Tensor:
    return torch.full((7, 7), float("-inf")).triu(1)


def mask_per_head(batch: int) -> torch.Tensor:
    """Mask per head, as in towers that hide the padding of each caption."""
    return torch.randn(batch * HEADS, 7, 7, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", [None, causal, mask_per_head])
@pytest.mark.parametrize(
    "options",
    [{}, {"act_layer": QuickGELU}, {"act_layer": lambda: nn.GELU("tanh")}, {"ls_init_value": 0.5}],
    ids=["gelu", "quick_gelu", "tanh", "scaled"],
)
def test_a_packed_block_equals_open_clips_block(
    dtype: torch.dtype, batch_first: bool, mask: Any, options: dict[str, Any]
) -> None:
    plain = block(dtype, batch_first=batch_first, **options)
    packed = copy.deepcopy(plain)
    assert pack_blocks(packed) == int(packing_available(dtype))
    batch, exact = 3, copy.deepcopy(plain).double()
    x = torch.randn((batch, 7, WIDTH) if batch_first else (7, batch, WIDTH)).to(dtype)
    given = mask and mask(batch)
    expected = infer(exact, x.double(), attn_mask=given)
    found = infer(packed, x, attn_mask=given)
    assert found.dtype == dtype
    assert found.shape == x.shape
    assert (found.double() - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


def with_cross_attention() -> nn.Module:
    return block(is_cross_attention=True)


def float64_block() -> nn.Module:
    return block(torch.float64)


def with_more_layers() -> nn.Module:
    made = block()
    made.mlp.add_module("dropout", nn.Identity())
    return made


def without_scales() -> nn.Module:
    """Block like OpenAI's, which has the same class name."""
    made = block()
    del made.ls_1, made.ls_2
    return made


def with_a_zero_to_attend_to() -> nn.Module:
    made = block()
    made.attn.add_zero_attn = True
    return made


def with_another_name() -> nn.Module:
    class Block(ResidualAttentionBlock):
        pass

    return Block(WIDTH, HEADS)


def with_another_result() -> nn.Module:
    made = block()
    plain = made.forward
    made.forward = lambda x, **options: plain(x, **options) * 1.01
    return made


@pytest.mark.parametrize(
    "make",
    [
        with_cross_attention,
        float64_block,
        with_more_layers,
        without_scales,
        with_a_zero_to_attend_to,
        with_another_name,
        with_another_result,
    ],
)
def test_other_blocks_are_left_alone(make: Any) -> None:
    made = nn.Sequential(make())
    assert pack_blocks(made) == 0
    assert not is_packed(made[0])


def test_blocks_are_not_replaced_if_packing_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_block, "packing_available", lambda dtype: False)
    made = block()
    assert pack_blocks(made) == 0


def test_both_towers_of_a_model_are_packed() -> None:
    """Fails if a new open_clip version renames the parts of its blocks."""
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 500, "width": 32, "heads": 2, "layers": 3}
    torch.manual_seed(0)
    plain = open_clip.model.CLIP(16, vision, text).eval()
    packed = copy.deepcopy(plain)
    assert pack_blocks(packed) == (5 if packing_available(torch.float32) else 0)
    assert packed.transformer.get_cast_dtype() == torch.float32
    pixels = torch.randn(3, 3, 32, 32)
    tokens = torch.randint(0, 500, (3, 16))
    with torch.inference_mode():
        torch.testing.assert_close(packed.encode_image(pixels), plain.encode_image(pixels), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(packed.encode_text(tokens), plain.encode_text(tokens), rtol=1e-5, atol=1e-6)


def test_the_original_weights_are_freed() -> None:
    if packing_available(torch.float32):
        made = block()
        assert pack_blocks(made) == 1
        assert sum(parameter.numel() for parameter in made.parameters() if parameter.ndim > 1) == 0
