"""Flash attention's forward pass on Hopper (arXiv:2205.14135; ping-pong scheduling of warpgroups, arXiv:2407.08608).

A thread block holds a tile of queries. One warpgroup copies blocks of keys and values by TMA into a ring of buffers in
shared memory; one or two others compute. With two, one uses the tensor cores while the other computes exponentials.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels import hopper
from pallas_kernels.attention.gpu import tiles
from pallas_kernels.attention.gpu.tiles import ROWS, Spec

STAGES = 2  # blocks of keys and of values in flight


def cost(spec: Spec, q: jax.Array, v: jax.Array, products: int, pairs: int) -> pl.CostEstimate:
    """The cost of a kernel with ``products`` matrix products over ``pairs`` of queries and keys in each head.

    A product is counted with the mean width of keys and values, one exponential per pair, and the bytes of the tiles
    read.
    """
    heads = spec.batch * spec.heads
    width = (q.shape[3] + v.shape[3]) / 2
    reads = heads * (spec.q_length + pairs / spec.tile) * 2 * width * q.dtype.itemsize
    return pl.CostEstimate(
        flops=int(2 * products * heads * pairs * width),
        transcendentals=int(heads * pairs),
        bytes_accessed=int(2 * reads),
    )


def forward(spec: Spec, arrays: dict[str, Any], pairs: int) -> tuple[jax.Array, jax.Array]:
    """The output (batch, q_length, heads, value_dim) and the log-sum-exp, float32 (batch, heads, q_padded), which is
    undefined for sigmoid.

    Args:
      spec: the constants.
      arrays: q, k and v of the op, in 16 bits, with head_dim and value_dim multiples of 32; and, unless None, key_bias
        float32 (batch or 1, heads or 1, k_padded) and bias float32 (batch or 1, heads or 1, q_padded, k_padded), both
        to base 2; q_positions int32 (batch or 1, 1, q_padded) and k_positions int32 (batch or 1, 1, k_padded), negative
        for no key; counts and blocks as in :func:`tiles.visit`.
      pairs: number of query-key pairs that a head computes, for the cost estimate.
    """
    q, v = arrays["q"], arrays["v"]
    head_dim, value_dim, size = q.shape[3], v.shape[3], spec.block
    present = {name: x for name, x in arrays.items() if x is not None}
    extra = [name for name in tiles.ALONG_KEYS if name in present]
    # With a positive scale and nothing to add, scaling is deferred to the exponential, where it is free.
    late = (
        spec.scale * tiles.LOG2E
        if spec.scale > 0 and spec.score is None and not {"key_bias", "bias"} & present.keys()
        else 1.0
    )

    def flash_forward(*references: Any) -> None:
        inputs = dict(zip(present, references, strict=False))
        out, lse, memory, barriers = references[len(present) :]
        batch, head, tile = lax.axis_index("batch"), lax.axis_index("head"), lax.axis_index("tile")
        if spec.reach[1] is not None:
            tile = spec.q_tiles - 1 - tile  # causal tiles get longer: start with the longest
        group = lax.axis_index(hopper.WARPGROUP)
        lists = (inputs["counts"], inputs["blocks"]) if "counts" in inputs else None
        blocks = tiles.visit(spec, lists, batch, head, tile)

        @pl.when(group == spec.consumers)
        def _producer() -> None:
            if spec.consumers == 2:
                plgpu.set_max_registers(tiles.COPYING, action="decrease")
            tiles.produce_keys(spec, blocks, STAGES, inputs, memory, barriers, batch, head, tile)

        @pl.when(group < spec.consumers)
        def _consumer() -> None:
            if spec.consumers == 2:
                plgpu.set_max_registers(tiles.MULTIPLYING, action="increase")
            start = tile * spec.tile + group * ROWS
            rows = pl.ds(start, ROWS)
            queries = memory["q"].at[group]
            plgpu.copy_gmem_to_smem(inputs["q"].at[batch, rows, head], queries, barriers["q"].at[group])
            if "q_positions" in inputs:
                where = (*tiles.layer(inputs["q_positions"], batch, head), rows)
                plgpu.copy_gmem_to_smem(
                    inputs["q_positions"].at[where], memory["q_positions"].at[group], barriers["q"].at[group]
                )
            plgpu.barrier_wait(barriers["q"].at[group])
            shape = (ROWS, size)

            def take_turns() -> None:
                if spec.consumers == 2:
                    plgpu.barrier_arrive(barriers["turn"])
                    plgpu.barrier_wait(barriers["turn"])

            def logits(step: Any, slot: Any, cut: bool) -> jax.Array:
                plgpu.barrier_wait(barriers["k"].at[slot])
                x = hopper.multiply(queries, hopper.transposed(memory["k"].at[slot]))
                x = x if late != 1.0 else tiles.logits(spec, x, head, lambda: places(step, slot))[0]
                if "key_bias" in inputs:
                    x += tiles.vector(memory["key_bias"].at[slot], shape, 1)
                if "bias" in inputs:
                    x += hopper.load(memory["bias"].at[slot, pl.ds(group * ROWS, ROWS)])
                if cut:
                    x = jnp.where(allowed(step, slot), x, -math.inf)
                plgpu.barrier_arrive(barriers["k_free"].at[slot])
                return x

            def places(step: Any, slot: Any) -> tuple[jax.Array, jax.Array]:
                if "k_positions" in inputs:
                    return tiles.vector(memory["q_positions"].at[group], shape, 0), tiles.vector(
                        memory["k_positions"].at[slot], shape, 1
                    )
                return tiles.indices(shape, start, 0), tiles.indices(shape, blocks.block(step) * size, 1)

            def allowed(step: Any, slot: Any) -> jax.Array:
                return tiles.visible(spec, *places(step, slot), given="k_positions" in inputs)

            def add_values(total: jax.Array, weight: jax.Array, slot: Any) -> jax.Array:
                take_turns()
                plgpu.barrier_wait(barriers["v"].at[slot])
                total = hopper.multiply(weight, memory["v"].at[slot], total)
                plgpu.barrier_arrive(barriers["v_free"].at[slot])
                return total

            def softmax(cut: bool, step: Any, carry: Any) -> Any:
                total, top, norm = carry
                slot = tiles.ring(step, STAGES)
                x = logits(step, slot, cut)
                take_turns()
                higher = jnp.maximum(top, x.max(axis=1) * late)
                weight = jnp.exp2(x * late - lax.broadcast_in_dim(higher, shape, [0]))
                shrink = jnp.exp2(top - higher)
                norm = norm * shrink + weight.sum(axis=1)
                total = total * lax.broadcast_in_dim(shrink, total.shape, [0])
                return add_values(total, weight.astype(q.dtype), slot), higher, norm

            def sigmoid(cut: bool, step: Any, carry: Any) -> Any:
                slot = tiles.ring(step, STAGES)
                x = logits(step, slot, cut)
                take_turns()
                return (add_values(carry[0], tiles.weights(spec, x * late, None).astype(q.dtype), slot),)

            step = sigmoid if spec.sigmoid else softmax
            row = plgpu.Layout.WGMMA.reduce(1)
            carry: Any = (hopper.arrange(jnp.zeros((ROWS, value_dim), jnp.float32)),)
            if not spec.sigmoid:
                carry += tuple(hopper.arrange(jnp.full((ROWS,), x, jnp.float32), row) for x in (tiles.LOWEST, 0.0))
            pl.when(group == 1)(take_turns)
            carry = tiles.loop(0, blocks.whole, lambda j, c: step(False, j, c), carry)
            carry = tiles.loop(blocks.whole, blocks.total, lambda j, c: step(True, j, c), carry)
            pl.when(group == 0)(take_turns)

            total = carry[0]
            if not spec.sigmoid:
                _, top, norm = carry
                empty = norm == 0.0
                norm = jnp.where(empty, 1.0, norm)
                total *= lax.broadcast_in_dim(1.0 / norm, total.shape, [0])
                memory["lse"][group] = jnp.where(empty, -math.inf, top / tiles.LOG2E + jnp.log(norm))
            leaving = queries if value_dim == head_dim else memory["out"].at[group]
            leaving[...] = total.astype(q.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(leaving, out.at[batch, rows, head])
            if not spec.sigmoid:
                plgpu.copy_smem_to_gmem(memory["lse"].at[group], lse.at[batch, head, rows])
            plgpu.wait_smem_to_gmem(0)

    memory = {
        "q": tiles.shared((spec.consumers, ROWS, head_dim), q.dtype),
        "out": None if value_dim == head_dim else tiles.shared((spec.consumers, ROWS, value_dim), q.dtype),
        "k": tiles.shared((STAGES, size, head_dim), q.dtype),
        "v": tiles.shared((STAGES, size, value_dim), q.dtype),
        "lse": plgpu.SMEM((spec.consumers, ROWS), jnp.float32),
    }
    shapes = {
        "key_bias": (STAGES, size),
        "k_positions": (STAGES, size),
        "q_positions": (spec.consumers, ROWS),
        "bias": (STAGES, spec.tile, size),
    }
    memory |= {name: plgpu.SMEM(shape, present[name].dtype) for name, shape in shapes.items() if name in present}
    barriers = {
        "q": plgpu.Barrier(num_barriers=spec.consumers, num_arrivals=1 + ("q_positions" in present)),
        "k": plgpu.Barrier(num_barriers=STAGES, num_arrivals=1 + len(extra) + ("bias" in present)),
        "v": plgpu.Barrier(num_barriers=STAGES),
        "k_free": plgpu.Barrier(num_barriers=STAGES, num_arrivals=spec.consumers),
        "v_free": plgpu.Barrier(num_barriers=STAGES, num_arrivals=spec.consumers),
        "turn": plgpu.Barrier(num_arrivals=2) if spec.consumers == 2 else None,
    }
    call = hopper.kernel(
        flash_forward,
        outputs=[
            jax.ShapeDtypeStruct((*q.shape[:3], value_dim), q.dtype),
            jax.ShapeDtypeStruct((spec.batch, spec.heads, spec.q_padded), jnp.float32),
        ],
        scratch=[memory, barriers],
        grid={"batch": spec.batch, "head": spec.heads, "tile": spec.q_tiles},
        warpgroups=spec.consumers + 1,
        cost=cost(spec, q, v, 2, pairs),
    )
    return call(*present.values())
