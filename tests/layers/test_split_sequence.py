"""Mixers on sequences split over devices: equal to one device, outputs and gradients; dilated attention sends only what
its long segments keep.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

import layers
from pallas_kernels import dispatch
from tests.devices import EightDevices
from tests.layers.sequence_run import CASES, FEATURES, LENGTH, ROWS
from tests.tiers import tiered


@pytest.mark.parametrize("case", tiered(CASES, lambda case: case == "dilated, causal"))
def test_equal_to_one_device(eight_devices: EightDevices, case: str) -> None:
    found = eight_devices("tests.layers.sequence_run:run", case)
    for name, difference in found["differences"].items():
        assert difference < 1e-5, name
    if case.startswith("dilated"):
        # Rates 2 and 4 go beyond a device: never more than half of the keys of its rows, which two devices share.
        assert 0 < found["largest_gathered"] <= (ROWS // 2) * LENGTH * FEATURES // 2


@pytest.mark.parametrize(
    ("mixer", "options", "shape", "expected"),
    [
        ("attention", {"num_heads": 4}, (2, 16, 8), {"all_to_all", "xla"}),
        ("windowed", {"window": 4, "inner": {"name": "attention", "num_heads": 4}}, (2, 8, 8, 8), {"xla"}),
        ("dilated_attention", {"num_heads": 4, "segments": (4,), "rates": (1,)}, (2, 16, 8), {"xla"}),
        ("bilevel_routing", {"num_heads": 4, "regions": 2, "topk": 2}, (2, 8, 8, 8), {"xla"}),
    ],
)
def test_pieces_do_not_trade_heads(
    mixer: str, options: dict[str, Any], shape: tuple[int, ...], expected: set[str]
) -> None:
    """Attention inside windows, segments and regions is on its own device or the compiler's to move; heads are traded
    for whole sequences.
    """
    mesh = AbstractMesh((4,), ("sequence",), axis_types=(AxisType.Auto,))
    made = layers.create_mixer(mixer, features=8, rngs=nnx.Rngs(0), **options)
    graph, params = nnx.split(made)
    with jax.sharding.use_abstract_mesh(mesh), dispatch.recording() as choices:
        jax.eval_shape(lambda params, x: nnx.merge(graph, params)(x), params, jax.ShapeDtypeStruct(shape, jnp.float32))
    assert {choice.implementation for choice in choices} == expected
