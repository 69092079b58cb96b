"""Shared parts of the kernels for Hopper GPUs (Pallas' Mosaic GPU: warpgroups, TMA copies, wgmma).

A kernel's body is written once for the compiler and for interpretation on a CPU (:func:`interpreted`). The interpreter
does not support products with operands in registers: :func:`multiply` replaces them by ordinary ones there.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.custom_batching
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels import dispatch
from primitives.platform import compute_capability

WARPGROUP = "warpgroup"
"""The name of the axis of a kernel's warpgroups."""
SHARED_BYTES = 227 * 1024
"""Largest shared memory of a thread block of an H100 or H200, in bytes."""

_interpreted: contextvars.ContextVar[bool] = contextvars.ContextVar("interpreted", default=False)


def objection() -> str | None:
    """Why kernels for Hopper can't run in programs traced now, or None. A GPU platform that is only simulated counts as
    Hopper.
    """
    capability = compute_capability()
    return (
        None
        if capability in (None, "9.0")
        else f"is written for Hopper (compute capability 9.0), this GPU has {capability}"
    )


def interpreter_missing() -> str | None:
    """Why :func:`interpreted` can't be used with this JAX, or None."""
    return (
        None
        if hasattr(plgpu, "force_gpu_interpret_mode")
        else f"JAX {jax.__version__}'s interpreter of GPU kernels can't transpose references"
    )


@contextlib.contextmanager
def interpreted(**options: Any) -> Iterator[None]:
    """Interprets the kernels traced inside on the CPU, including warpgroups and barriers; slow.

    Args:
      **options: options of JAX's ``InterpretGPUParams``, for example ``detect_races=True``.
    """
    token = _interpreted.set(True)
    try:
        public: Any = plgpu  # only newer JAX has these two
        with public.force_gpu_interpret_mode(public.InterpretGPUParams(**options)), dispatch.platform("gpu"):
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
    """Makes a Mosaic GPU kernel with a cost estimate, on every supported JAX version.

    Args:
      body: takes the references of the inputs, of the outputs, and one argument for each entry of ``scratch``.
      outputs: shapes and dtypes of the results, which are returned as a list.
      scratch: trees of ``plgpu.SMEM``, ``plgpu.Barrier`` and None, shared by the warpgroups.
      grid: axis names and sizes; the last axis varies fastest and may be long, the others are at most 65535.
      warpgroups: number of warpgroups of 128 threads; ``lax.axis_index(WARPGROUP)`` is the index of one.
      cost: the cost estimate, which :mod:`primitives.operations` counts.
      approximate: allow exponentials and divisions errors of a few units in the last place.
    """

    def scoped(*references: Any) -> None:
        pl.run_scoped(lambda *more: body(*references, *more), *scratch, collective_axes=WARPGROUP)

    mesh = plgpu.Mesh(grid=tuple(grid.values()), grid_names=tuple(grid), num_threads=warpgroups, thread_name=WARPGROUP)

    @jax.custom_batching.sequential_vmap  # Pallas can't batch these kernels, whose grid is fixed
    def call(*arrays: Any) -> Any:
        # The references of the body have no varying-mesh-axes types.
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


def multiply(a: Any, b: Any, total: jax.Array | None = None) -> jax.Array:
    """``total + a @ b`` by wgmma, float32, in the layout of products.

    Args:
      a: (m, k) of 16-bit numbers, in shared memory or in the warpgroup's registers.
      b: (k, n), in shared memory.
      total: (m, n) float32; zeros by default.
    """

    def run(accumulator: Any) -> jax.Array:
        plgpu.wgmma(accumulator, a, b)
        return accumulator[...]

    held = isinstance(a, jax.Array)
    if total is not None and not _interpreted.get():
        return pl.run_state(lambda accumulator: plgpu.wgmma(accumulator, a, b))(plgpu.ACC.init(total))
    if held and _interpreted.get():
        fresh = jnp.dot(a.astype(jnp.float32), b[...].astype(jnp.float32))
        plgpu.commit_smem()  # wgmma reads b as copies wrote it, without a fence; the interpreter needs one
    else:
        fresh = pl.run_scoped(run, plgpu.ACC((a.shape[0], b.shape[1]), jnp.float32))
    return fresh if total is None else total + fresh


def products(*pairs: tuple[Any, Any]) -> tuple[jax.Array, ...]:
    """``a @ b`` in float32 for each pair in shared memory, all issued at once."""

    def run(*totals: Any) -> tuple[jax.Array, ...]:
        for total, (a, b) in zip(totals, pairs, strict=True):
            plgpu.wgmma(total, a, b)
        return tuple(total[...] for total in totals)

    return pl.run_scoped(run, *(plgpu.ACC((a.shape[0], b.shape[1]), jnp.float32) for a, b in pairs))


def add_products(*sums: tuple[Any, ...]) -> tuple[jax.Array, ...]:
    """``total + a @ b + c @ d + ...`` for each (total, a, b, c, d, ...), with a float32 array ``total`` and the others
    in shared memory; all issued at once.
    """
    if _interpreted.get():
        return tuple(
            functools.reduce(operator.add, products(*zip(tiles[::2], tiles[1::2])), total) for total, *tiles in sums
        )

    def run(totals: tuple[Any, ...]) -> None:
        for total, (_, *tiles) in zip(totals, sums, strict=True):
            for a, b in zip(tiles[::2], tiles[1::2], strict=True):
                plgpu.wgmma(total, a, b)

    return pl.run_state(run)(tuple(plgpu.ACC.init(total) for total, *_ in sums))


def transposed(reference: Any) -> Any:
    """A shared-memory matrix read as its transpose."""
    return plgpu.transpose_ref(reference, (1, 0)) if "transpose_ref" in vars(plgpu) else reference.transpose((1, 0))


def arrange(x: jax.Array, layout: Any = plgpu.Layout.WGMMA) -> jax.Array:
    """``x`` in the register layout of wgmma's products, or in ``layout``; ``Layout.WGMMA.reduce(1)`` holds one number
    per row of a product.
    """
    return plgpu.layout_cast(x, layout)


def load(reference: Any, layout: Any = plgpu.Layout.WGMMA) -> jax.Array:
    """Loads a reference into registers, in a layout as for :func:`arrange`."""
    everything = ((),) if "idx" in inspect.signature(plgpu.load).parameters else ()  # an argument until JAX 0.11
    return plgpu.load(reference, *everything, layout=layout, optimized=False)


def iota(shape: tuple[int, int], axis: int) -> jax.Array:
    """int32 of ``shape``: the index along ``axis``, in the layout of wgmma's products."""
    return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA)


def tiled(shape: tuple[int, ...], dtype: Any, columns: int) -> Any:
    """Shared memory whose two last axes wgmma reads, swizzled in groups of ``columns`` of the last axis: 64 or 32 of 16
    bits.
    """
    swizzle = columns * jnp.dtype(dtype).itemsize
    return plgpu.SMEM(shape, dtype, transforms=(plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(swizzle)))
