"""The committed goldens are what the installed DALLE2-pytorch returns."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import numpy as np
import pytest

from ..parity import make_goldens
from ..parity.goldens import Golden, load_goldens

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

GOLDENS = load_goldens(make_goldens.INSTALLED)


@pytest.fixture(scope="module")
def namespace() -> dict[str, Any]:
    assert importlib.metadata.version("dalle2-pytorch") == make_goldens.INSTALLED
    return make_goldens.namespace_of(make_goldens.INSTALLED, None)


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: golden.name)
def test_upstream_returns_the_golden(golden: Golden, namespace: dict[str, Any]) -> None:
    computed = make_goldens.compute(namespace, golden)
    assert computed.shapes == golden.shapes
    assert computed.absent == golden.absent
    assert computed.expected.keys() == golden.expected.keys()
    for name, values in golden.expected.items():
        # samplers amplify the rounding in which kinds of CPU differ; this factor is how much
        tolerance = 1e-5 * max(1.0, golden.amplification.get(name, 1.0))
        np.testing.assert_allclose(computed.expected[name], values, rtol=1e-5, atol=tolerance * np.abs(values).max())


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: golden.name)
def test_the_goldens_state_dict_is_upstreams(golden: Golden, namespace: dict[str, Any]) -> None:
    network = make_goldens.build(namespace, golden)
    state, computed = network.state_dict(), dict(network.named_buffers())
    drawn = golden.state_dict()
    assert drawn.keys() == state.keys()
    for name, values in state.items():
        if name in computed and values.dtype.is_floating_point:  # kinds of CPU differ in a cosine's last bit
            np.testing.assert_allclose(drawn[name], values.numpy(), rtol=2.4e-7, atol=0)
        else:
            np.testing.assert_array_equal(drawn[name], values.numpy())
