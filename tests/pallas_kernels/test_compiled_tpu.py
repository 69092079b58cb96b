"""TPU kernels at realistic shapes, forward and backward, through the TPU's own compiler: what does not lower or
overflows VMEM is refused there.

``python -m benchmarks.kernels`` compiles all shapes for all devices.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import pallas_kernels
from pallas_kernels.compilers import compile_for, missing
from pallas_kernels.dispatch import OPS, recording
from tests.compilation import optimizing

pytestmark = pytest.mark.full

# A program takes seconds to compile: here those that differ in their kernels, for either device in turn.
COMPILED = (
    ("attention", "window", jnp.bfloat16, "v5e"),
    ("attention", "causal_lse", jnp.bfloat16, "v5e"),
    ("attention", "mask", jnp.bfloat16, "v6e"),
    ("attention", "cache", jnp.bfloat16, "v5e"),
    ("attention", "segments", jnp.bfloat16, "v5e"),
    ("attention", "image_windows", jnp.bfloat16, "v6e"),
    ("attention", "routed_padded", jnp.bfloat16, "v5e"),
    ("attention", "pattern", jnp.bfloat16, "v6e"),
    ("attention", "score", jnp.bfloat16, "v5e"),
    ("linear_attention", "mamba2", jnp.bfloat16, "v5e"),
    ("linear_attention", "key", jnp.bfloat16, "v6e"),
    ("linear_attention", "both_ways", jnp.float32, "v6e"),
    ("delta_rule", "gated", jnp.float32, "v5e"),
    ("delta_rule", "two_steps", jnp.bfloat16, "v6e"),
    ("selective_scan", "mamba", jnp.bfloat16, "v5e"),
    ("selective_scan", "many_states", jnp.float32, "v6e"),
)


@pytest.mark.parametrize(("op_name", "shape_name", "dtype", "device"), COMPILED)
def test_compiles(op_name: str, shape_name: str, dtype: Any, device: str) -> None:
    if (reason := missing(device)) is not None:
        pytest.skip(reason)
    shape = next(shape for shape in OPS[op_name].shapes if shape.name == shape_name)
    call = functools.partial(getattr(pallas_kernels, op_name), **shape.options)

    def gradient(arrays: dict[str, jax.Array]) -> Any:
        """Outputs, and the gradients of all floating arrays."""
        floats = {n: x for n, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.floating)}
        rest = {n: x for n, x in arrays.items() if n not in floats}
        outputs, pullback = jax.vjp(lambda floats: call(**floats, **rest), floats)
        return outputs, pullback(jax.tree.map(jnp.cos, outputs))

    with recording() as record, optimizing():
        program = compile_for(device, gradient, shape.abstract(dtype))
    assert [choice.implementation for choice in record] in (["mosaic_tpu"], ["splash"]), list(map(str, record))
    assert len(program.kernels) >= 2, "one forward, one backward"
