"""TPU kernels at realistic shapes, forward and backward, through the TPU's own compiler: what does not lower or
overflows VMEM is refused there.

``python -m benchmarks.kernels`` compiles all shapes for all devices.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks.kernels import gradients
from pallas_kernels import masks
from pallas_kernels.compilers import compile_for, missing
from pallas_kernels.dispatch import OPS, Shape, recording
from tests.compilation import optimizing

pytestmark = pytest.mark.full


def ids(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


SHAPES = {(op.name, shape.name): shape for op in OPS.values() for shape in op.shapes}
CACHE, SCORE = SHAPES["attention", "cache"], SHAPES["attention", "score"]
# What kernels of attention are given, together.
PACKED = {
    "query_segments": ids(2, 512),
    "key_segments": ids(2, 2048),
    "mask": jax.ShapeDtypeStruct((2, 1, 512, 2048), jnp.bool_),
}
SHAPES["attention", "packed_cache"] = Shape("packed_cache", CACHE.arrays | PACKED, CACHE.options)
SHAPES["attention", "pattern_score"] = Shape(
    "pattern_score", SCORE.arrays, {"score": SCORE.options["score"], "mask": masks.dilated(1024, 2)}
)
# A program takes seconds to compile: here every kernel, and every option once, for either device in turn.
COMPILED = (
    ("attention", "window", jnp.bfloat16, "v5e"),
    ("attention", "packed_cache", jnp.bfloat16, "v5e"),
    ("attention", "image_windows_bias", jnp.bfloat16, "v6e"),
    ("attention", "routed_padded", jnp.bfloat16, "v5e"),
    ("attention", "pattern_score", jnp.bfloat16, "v6e"),
    ("linear_attention", "mamba2", jnp.bfloat16, "v5e"),
    ("linear_attention", "key", jnp.bfloat16, "v6e"),
    ("delta_rule", "gated", jnp.float32, "v5e"),
    ("selective_scan", "mamba", jnp.bfloat16, "v5e"),
    ("neighborhood_attention", "map", jnp.bfloat16, "v5e"),
    ("neighborhood_attention", "line_padding", jnp.bfloat16, "v6e"),
)


@pytest.mark.parametrize(("op_name", "shape_name", "dtype", "device"), COMPILED)
def test_compiles(op_name: str, shape_name: str, dtype: Any, device: str) -> None:
    """Outputs and the gradients of all floating arrays. With the least effort a kernel takes half the time to compile,
    and more VMEM.
    """
    if (reason := missing(device)) is not None:
        pytest.skip(reason)
    shape = SHAPES[op_name, shape_name]
    function, _ = gradients(OPS[op_name], shape)
    with recording() as record, optimizing("O0"):
        program = compile_for(device, function, shape.abstract(dtype))
    assert [choice.implementation for choice in record] in (["mosaic_tpu"], ["splash"]), list(map(str, record))
    assert len(program.kernels) >= 2, "one forward, one backward"
