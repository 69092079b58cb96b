"""What kernels declare, against the counted operations of XLA's form of the same call, gradient included."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import pallas_kernels
from pallas_kernels.dispatch import OPS, platform
from primitives import operations

# How much more arithmetic a kernel does: it computes weights again in two kernels, adds up decays by products, inverts
# by doubling.
MORE = {
    ("attention", "causal_lse"): 1.2,
    ("linear_attention", "token"): 1.8,
    ("delta_rule", "gated"): 1.8,
    ("selective_scan", "mamba"): 1.2,
}


# Hopper's kernels take 16 bits.
DTYPES = {"tpu": jnp.float32, "gpu": jnp.bfloat16}


@pytest.mark.parametrize("where", DTYPES)
@pytest.mark.parametrize(("op_name", "shape_name"), MORE)
def test_cost_of_kernels(op_name: str, shape_name: str, where: str) -> None:
    most = MORE[op_name, shape_name]
    if (op_name, where) == ("delta_rule", "gpu"):
        shape_name = "plain"  # the gated one has keys too wide for it
    shape = next(shape for shape in OPS[op_name].shapes if shape.name == shape_name)

    def gradient(implementation: str, arrays: dict[str, jax.Array]) -> Any:
        call = functools.partial(getattr(pallas_kernels, op_name), implementation=implementation, **shape.options)
        outputs, pullback = jax.vjp(lambda arrays: call(**arrays), arrays)
        return outputs, pullback(outputs)

    arrays = shape.abstract(DTYPES[where])
    with platform(where):
        kernels = operations.count(functools.partial(gradient, f"mosaic_{where}"), arrays).flops
        plain = operations.count(functools.partial(gradient, "xla"), arrays).flops
    # XLA's form of causal attention reads 5/8 of the pairs, blocks little more than 1/2.
    assert 0.85 < kernels / plain < most
