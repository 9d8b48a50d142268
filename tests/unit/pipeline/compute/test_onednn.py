"""Products with packed weights, against torch's."""

from __future__ import annotations

import pytest
import torch

from priorkit.pipeline.compute.onednn import pack, packed_product, packing_available


@pytest.mark.skipif(not packing_available(torch.float32), reason="this torch has no operators for packed weights")
@pytest.mark.parametrize("gelu", [False, True])
def test_a_packed_product_is_that_of_torch(gelu: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((2, 3, 8), (16, 8), (16,)))
    with torch.inference_mode():
        product = packed_product(x, pack(weight, 6), bias, gelu=gelu)
        expected = torch.nn.functional.linear(x, weight, bias)
        torch.testing.assert_close(product, torch.nn.functional.gelu(expected) if gelu else expected)


def test_other_types_are_not_packed() -> None:
    assert not packing_available(torch.float64)
    assert not packing_available(torch.float16)
