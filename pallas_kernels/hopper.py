"""What the kernels for Hopper GPUs share (Pallas' Mosaic GPU: warpgroups, TMA copies, wgmma).

A kernel's body is written once for the compiler and for interpretation on a CPU (:func:`interpreted`), whose two
differences are here: products that add to an accumulator, and the estimate of the cost that the walker counts.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax.sharding import AxisType

from pallas_kernels import dispatch

WARPGROUP = "warpgroup"
"""The name of the axis of a kernel's warpgroups."""
SHARED_BYTES = 227 * 1024
"""Shared memory that a thread block of an H100 or H200 may ask for."""

_interpreted: contextvars.ContextVar[bool] = contextvars.ContextVar("interpreted", default=False)


def objection() -> str | None:
    """Why kernels for Hopper can't serve programs traced now, or None. A platform that is only named counts as Hopper."""
    capability = dispatch.compute_capability()
    if capability not in (None, "9.0"):
        return f"is written for Hopper (compute capability 9.0), this GPU has {capability}"
    mesh = jax.sharding.get_abstract_mesh()
    split = {name: size for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types) if kind != AxisType.Manual and size > 1}
    return f"works on one device's arrays, and the mesh splits them ({split}); call it inside jax.shard_map" if split else None


@contextlib.contextmanager
def interpreted(**options: Any) -> Iterator[None]:
    """Interprets the kernels traced inside on the CPU, warpgroups and barriers included; slow.

    Args:
      **options: of JAX's ``InterpretGPUParams``, for example ``detect_races=True``.
    """
    from jax._src.pallas.mosaic_gpu.interpret import params  # public only in newer JAX

    token = _interpreted.set(True)
    try:
        with params.force_gpu_interpret_mode(params.InterpretGPUParams(**options)), dispatch.platform("gpu"):
            yield
    finally:
        _interpreted.reset(token)


def kernel(
    body: Callable[..., None],
    *,
    outputs: Sequence[jax.ShapeDtypeStruct],
    scratch: Sequence[Any],
    grid: dict[str, int],
    warpgroups: int,
    cost: pl.CostEstimate,
    approximate: bool = True,
) -> Callable[..., Any]:
    """A Mosaic GPU kernel with a cost estimate, on every JAX that we run on.

    Args:
      body: takes the references of the inputs, of the outputs, and one argument for each entry of ``scratch``.
      outputs: what it returns, as a list.
      scratch: trees of ``plgpu.SMEM``, ``plgpu.Barrier`` and None; shared by the warpgroups.
      grid: axis names and sizes; the last runs fastest and may be long, the others at most 65535.
      warpgroups: of 128 threads; ``lax.axis_index(WARPGROUP)`` tells them apart.
      cost: what :mod:`pallas_kernels.operations` counts.
      approximate: lets exponentials and divisions be a few units in the last place off.
    """

    def scoped(*references: Any) -> None:
        pl.run_scoped(lambda *more: body(*references, *more), *scratch, collective_axes=WARPGROUP)

    mesh = plgpu.Mesh(grid=tuple(grid.values()), grid_names=tuple(grid), num_threads=warpgroups, thread_name=WARPGROUP)

    def call(*arrays: Any) -> Any:
        # The body's references carry no types of varying mesh axes.
        with jax._src.config._check_vma(False):
            return pl.kernel(
                scoped,
                out_type=list(outputs),
                mesh=mesh,
                compiler_params=plgpu.CompilerParams(approx_math=approximate),
                cost_estimate=cost,
                name=body.__name__,
            )(*arrays)

    return call


def product(shape: tuple[int, ...], multiply: Callable[[Any], None]) -> jax.Array:
    """Runs ``multiply(accumulator)``, which calls ``plgpu.wgmma`` on it, from zeros; float32 of ``shape``, which a warpgroup holds."""

    def run(accumulator: Any) -> jax.Array:
        multiply(accumulator)
        return accumulator[...]

    return pl.run_scoped(run, plgpu.ACC((shape[0], shape[1]), jnp.float32))


def accumulate(total: jax.Array, multiply: Callable[[Any], None]) -> jax.Array:
    """As :func:`product`, from ``total`` instead of zeros."""
    if _interpreted.get():
        return total + product(total.shape, multiply)  # the interpreter knows no run_state
    return pl.run_state(multiply)(plgpu.ACC.init(total))


def transposed(reference: Any) -> Any:
    """A shared-memory matrix read as its transpose."""
    return reference.T if hasattr(reference, "T") else plgpu.transpose_ref(reference, (1, 0))


def zeros(shape: tuple[int, ...], layout: Any = None) -> jax.Array:
    """float32 zeros as a warpgroup holds products, or in ``layout``."""
    return plgpu.layout_cast(jnp.zeros(shape, jnp.float32), plgpu.Layout.WGMMA if layout is None else layout)


def tiled(shape: tuple[int, ...], dtype: Any, columns: int) -> Any:
    """Shared memory of which wgmma reads the two last axes; ``columns`` of the last axis lie together: 64 or 32 of 16 bits."""
    swizzle = columns * jnp.dtype(dtype).itemsize
    return plgpu.SMEM(shape, dtype, transforms=(plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(swizzle)))
