"""What TPU kernels declare that they do, against the counted operations of XLA's form of the same call, gradient included."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import pallas_kernels
from pallas_kernels import operations
from pallas_kernels.dispatch import OPS, platform

# How much more arithmetic a kernel does: it computes weights again in two kernels, adds up decays by products, inverts by doubling.
MORE = {
    ("attention", "dense"): 1.2,
    ("attention", "causal_lse"): 1.2,
    ("linear_attention", "token"): 1.8,
    ("delta_rule", "gated"): 1.8,
    ("selective_scan", "mamba"): 1.2,
}


@pytest.mark.parametrize(("op_name", "shape_name"), MORE)
def test_cost_of_kernels(op_name: str, shape_name: str) -> None:
    shape = next(shape for shape in OPS[op_name].shapes if shape.name == shape_name)

    def gradient(implementation: str, arrays: dict[str, jax.Array]) -> Any:
        call = functools.partial(getattr(pallas_kernels, op_name), implementation=implementation, **shape.options)
        outputs, pullback = jax.vjp(lambda arrays: call(**arrays), arrays)
        return outputs, pullback(outputs)

    with platform("tpu"):
        kernels = operations.count(functools.partial(gradient, "mosaic_tpu"), shape.abstract(jnp.float32)).flops
    plain = operations.count(functools.partial(gradient, "xla"), shape.abstract(jnp.float32)).flops
    assert 0.9 < kernels / plain < MORE[op_name, shape_name]
