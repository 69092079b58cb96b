"""Every Hopper kernel at the realistic shapes of its op, compiled for an H100 by XLA and ptxas: nothing overflows, and accumulators stay in registers."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import pytest

import pallas_kernels
from pallas_kernels import compilers, dispatch, hopper
from pallas_kernels.dispatch import OPS, Op, Shape

pytestmark = pytest.mark.skipif(compilers.missing("h100") is not None, reason=str(compilers.missing("h100")))

SPILL_LIMIT = 32  # bytes a thread: some addresses, and none of the accumulators

ROWS = [pytest.param(op, shape, id=f"{op.name}-{shape.name}") for op in OPS.values() for shape in op.shapes]


def step(op: Op, shape: Shape, floating: dict[str, Any], others: dict[str, Any]) -> Any:
    """Outputs and all gradients."""
    call = functools.partial(getattr(pallas_kernels, op.name), implementation="mosaic_gpu", **others, **shape.options)
    outputs, pull = jax.vjp(lambda arrays: call(**arrays), floating)
    return outputs, pull(jax.tree.map(jnp.ones_like, outputs))


@pytest.mark.parametrize(("op", "shape"), ROWS)
def test_compiles_for_h100(op: Op, shape: Shape) -> None:
    arrays = shape.abstract(jnp.bfloat16)
    floating = {n: x for n, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    others = {n: x for n, x in arrays.items() if n not in floating}
    try:
        program = compilers.compile_for("h100", functools.partial(step, op, shape), floating, others)
    except dispatch.Refused as refused:
        pytest.skip(str(refused.reasons))
    assert program.kernels
    for kernel in program.kernels:
        assert kernel.registers is not None
        assert kernel.spill_bytes is not None
        assert kernel.spill_bytes <= SPILL_LIMIT, kernel
        assert kernel.shared_bytes is not None
        assert 0 < kernel.shared_bytes <= hopper.SHARED_BYTES
        assert not [remark for remark in kernel.remarks if "wgmma" in remark], "products wait for each other"


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
    monkeypatch.setattr(dispatch, "compute_capability", lambda: "8.0")
    q = jax.ShapeDtypeStruct((1, 256, 2, 64), jnp.bfloat16)
    with dispatch.platform("gpu"), dispatch.recording() as choices:
        jax.eval_shape(pallas_kernels.attention, q, q, q)
    assert choices[0].implementation == "xla"
    assert "compute capability 9.0" in dict(choices[0].rejected)["mosaic_gpu"]
