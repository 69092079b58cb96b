"""Hopper kernels at realistic shapes, forward and backward, compiled for an H100 by XLA and ptxas: nothing overflows,
and accumulators stay in registers.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import pytest

import pallas_kernels
from benchmarks.kernels import gradients
from pallas_kernels import compilers, dispatch, hopper
from pallas_kernels.dispatch import OPS
from pallas_kernels.linear_attention import mosaic_gpu
from tests.compilation import optimizing
from tests.pallas_kernels.test_compiled_tpu import SHAPES

pytestmark = pytest.mark.full

needs_compiler = pytest.mark.skipif(compilers.missing("h100") is not None, reason=str(compilers.missing("h100")))

SPILL_LIMIT = 32  # bytes a thread: some addresses, and none of the accumulators

# A program takes seconds to compile: here those that differ in their kernels, every option once. ``python -m
# benchmarks.kernels`` compiles all shapes, and the kernels of a decay for each key, which take 18 seconds.
COMPILED = (
    ("attention", "causal_grouped"),
    ("attention", "mask"),
    ("attention", "cache"),
    ("attention", "image_windows_bias"),
    ("attention", "routed_padded"),
    ("attention", "pattern_score"),
    ("linear_attention", "mamba2"),
    ("delta_rule", "gated_grouped"),
    ("selective_scan", "mamba"),
    ("neighborhood_attention", "line_padding"),
)


@needs_compiler
@pytest.mark.parametrize(("op_name", "shape_name"), COMPILED)
def test_compiles_for_h100(op_name: str, shape_name: str) -> None:
    function, arrays = gradients(OPS[op_name], SHAPES[op_name, shape_name])
    with dispatch.recording() as choices, optimizing():
        program = compilers.compile_for("h100", function, arrays)
    assert [choice.implementation for choice in choices] == ["mosaic_gpu"], list(map(str, choices))
    assert program.kernels
    for kernel in program.kernels:
        assert kernel.registers is not None
        assert kernel.spill_bytes is not None
        assert kernel.spill_bytes <= SPILL_LIMIT, kernel
        assert kernel.shared_bytes is not None
        assert 0 < kernel.shared_bytes <= hopper.SHARED_BYTES
        assert not [remark for remark in kernel.remarks if "wgmma" in remark], "products wait for each other"


@needs_compiler
def test_sums_over_few_tokens_compile_for_h100() -> None:
    """XLA compiles no cumulative sum of fewer than 16 numbers after a padding of zeros
    (findings/xla_gpu_cumsum_after_zeros.sh).
    """
    tokens, met = jax.ShapeDtypeStruct((2, 2, 5), jnp.float32), jax.ShapeDtypeStruct((2, 2, 1), jnp.float32)
    compilers.compile_for("h100", lambda tokens, met: mosaic_gpu.decay_cotangent(tokens, met, 5), tokens, met)
    logs = jax.ShapeDtypeStruct((2, 5, 2), jnp.float32)
    compilers.compile_for("h100", lambda logs: mosaic_gpu.sums_in_chunks(logs, 1), logs)


@needs_compiler
def test_shared_memory_that_an_h100_does_not_have_is_refused() -> None:
    x = jax.ShapeDtypeStruct((64, 1024), jnp.float32)

    def copy(source: Any, target: Any, memory: Any, barrier: Any) -> None:
        plgpu.copy_gmem_to_smem(source, memory, barrier)
        plgpu.barrier_wait(barrier)
        plgpu.copy_smem_to_gmem(memory, target)
        plgpu.wait_smem_to_gmem(0)

    call = hopper.kernel(
        copy, outputs=[x], scratch=[plgpu.SMEM(x.shape, x.dtype), plgpu.Barrier()], grid={"one": 1}, warpgroups=1,
        cost=jax.experimental.pallas.CostEstimate(flops=0, transcendentals=0, bytes_accessed=0),
    )  # fmt: skip
    with pytest.raises(ValueError, match="exceeds available shared memory"):
        compilers.compile_for("h100", call, x)


def test_other_gpus_get_the_portable_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hopper, "compute_capability", lambda: "8.0")
    q = jax.ShapeDtypeStruct((1, 256, 2, 64), jnp.bfloat16)
    with dispatch.platform("gpu"), dispatch.recording() as choices:
        jax.eval_shape(pallas_kernels.attention, q, q, q)
    assert choices[0].implementation == "xla"
    assert "compute capability 9.0" in dict(choices[0].rejected)["mosaic_gpu"]
