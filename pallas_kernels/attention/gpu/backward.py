"""Flash attention's gradients on Hopper: one kernel for the queries, over tiles of queries, and one for keys and
values, over tiles of keys.

Both recompute the weights from the log-sum-exp that the forward pass stored (arXiv:2205.14135, algorithm 4; without its
atomic additions, so that results are deterministic). Tiles of keys are computed transposed, so that wgmma takes the
weights directly from registers. A tile of keys iterates over the queries of all heads that share it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels import hopper
from pallas_kernels.attention.gpu import tiles
from pallas_kernels.attention.gpu.forward import cost
from pallas_kernels.attention.gpu.tiles import ROWS, Spec

STAGES = 2


def gradient_of_queries(spec: Spec, arrays: dict[str, Any], pairs: int) -> list[jax.Array]:
    """The gradient of q, (batch, q_length, heads, head_dim); with ``spec.every_block`` also that of the bias, float32
    (batch, heads, q_padded, k_padded).

    Args:
      spec: the constants.
      arrays: those of :func:`pallas_kernels.attention.gpu.forward.forward`; do, of the output's shape; and for softmax
        lse and delta, float32 (batch, heads, q_padded): the log-sum-exp to base 2, :data:`tiles.HIGHEST` where nothing
        is attended to, and the term that is subtracted from the weights' gradients.
      pairs: as there.
    """
    q, v = arrays["q"], arrays["v"]
    head_dim, value_dim, size = q.shape[3], v.shape[3], spec.block
    present = {name: x for name, x in arrays.items() if x is not None}
    columns = [name for name in tiles.ALONG_KEYS if name in present]
    rows_of = [name for name in ("lse", "delta", "q_positions") if name in present]
    # Keys at once: with wide accumulators, a score's derivative or a pattern's numbers more do not fit the registers.
    narrow = max(head_dim, value_dim) > 64 or spec.score is not None or spec.pattern is not None
    width = 64 if narrow else size
    shape = (ROWS, width)

    def flash_gradient_of_queries(*references: Any) -> None:
        inputs = dict(zip(present, references, strict=False))
        *results, memory, barriers = references[len(present) :]
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
            rows, ready = pl.ds(start, ROWS), barriers["q"].at[group]
            queries, outputs = memory["q"].at[group], memory["do"].at[group]
            plgpu.copy_gmem_to_smem(inputs["q"].at[batch, rows, head], queries, ready)
            plgpu.copy_gmem_to_smem(inputs["do"].at[batch, rows, head], outputs, ready)
            for name in rows_of:
                plgpu.copy_gmem_to_smem(
                    inputs[name].at[(*tiles.layer(inputs[name], batch, head), rows)], memory[name].at[group], ready
                )
            plgpu.barrier_wait(ready)
            row = {name: hopper.load(memory[name].at[group], plgpu.Layout.WGMMA.reduce(1)) for name in rows_of}

            def spread(name: str) -> Any:
                return lax.broadcast_in_dim(row[name], shape, [0]) if name in row else None

            def places(first: Any, slot: Any, part: Any) -> tuple[jax.Array, jax.Array]:
                if "k_positions" in inputs:
                    return spread("q_positions"), tiles.vector(memory["k_positions"].at[slot, part], shape, 1)
                return tiles.indices(shape, start, 0), tiles.indices(shape, first, 1)

            def add_part(cut: bool, first: Any, slot: Any, part: Any, total: jax.Array) -> jax.Array:
                keys, values = memory["k"].at[slot, part], memory["v"].at[slot, part]
                x, slope = tiles.logits(
                    spec, hopper.multiply(queries, hopper.transposed(keys)), head, lambda: places(first, slot, part)
                )
                if "key_bias" in inputs:
                    x += tiles.vector(memory["key_bias"].at[slot, part], shape, 1)
                if "bias" in inputs:
                    x += hopper.load(memory["bias"].at[slot, pl.ds(group * ROWS, ROWS), part])
                if cut:
                    x = jnp.where(
                        tiles.visible(spec, *places(first, slot, part), given="k_positions" in inputs), x, -math.inf
                    )
                weight = tiles.weights(spec, x, spread("lse"))
                if not spec.every_block:
                    weight, slope = tiles.joined(spec, weight, slope)
                gradient = hopper.multiply(outputs, hopper.transposed(values))
                gradient = tiles.gradient_of_logits(spec, weight, gradient, spread("delta"))
                if spec.every_block:
                    plgpu.wait_smem_to_gmem(0)
                    memory["dbias"][group] = gradient
                    plgpu.commit_smem()
                    plgpu.copy_smem_to_gmem(
                        memory["dbias"].at[group], results[1].at[batch, head, rows, pl.ds(first, width)]
                    )
                gradient = gradient if slope is None else gradient * slope
                return hopper.multiply(gradient.astype(q.dtype), keys, total)

            def step(cut: bool, step: Any, total: jax.Array) -> jax.Array:
                slot, first = tiles.ring(step, STAGES), blocks.block(step) * size
                plgpu.barrier_wait(barriers["k"].at[slot])
                plgpu.barrier_wait(barriers["v"].at[slot])
                for at in range(0, size, width):
                    total = add_part(cut, first + at, slot, pl.ds(at, width), total)
                plgpu.barrier_arrive(barriers["v_free"].at[slot])
                plgpu.barrier_arrive(barriers["k_free"].at[slot])
                return total

            total = hopper.arrange(jnp.zeros((ROWS, head_dim), jnp.float32))
            total = tiles.loop(0, blocks.whole, lambda j, t: step(False, j, t), total)
            total = tiles.loop(blocks.whole, blocks.total, lambda j, t: step(True, j, t), total)
            queries[...] = (total * spec.scale).astype(q.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(queries, results[0].at[batch, rows, head])
            plgpu.wait_smem_to_gmem(0)

    memory = {
        "q": tiles.shared((spec.consumers, ROWS, head_dim), q.dtype),
        "do": tiles.shared((spec.consumers, ROWS, value_dim), q.dtype),
        "k": tiles.shared((STAGES, size, head_dim), q.dtype),
        "v": tiles.shared((STAGES, size, value_dim), q.dtype),
        "dbias": plgpu.SMEM((spec.consumers, ROWS, width), jnp.float32) if spec.every_block else None,
    }
    memory |= {name: plgpu.SMEM((STAGES, size), present[name].dtype) for name in columns}
    memory |= {name: plgpu.SMEM((spec.consumers, ROWS), present[name].dtype) for name in rows_of}
    if "bias" in present:
        memory["bias"] = plgpu.SMEM((STAGES, spec.tile, size), jnp.float32)
    barriers = {
        "q": plgpu.Barrier(num_barriers=spec.consumers, num_arrivals=2 + len(rows_of)),
        "k": plgpu.Barrier(num_barriers=STAGES, num_arrivals=1 + len(columns) + ("bias" in present)),
        "v": plgpu.Barrier(num_barriers=STAGES),
        "k_free": plgpu.Barrier(num_barriers=STAGES, num_arrivals=spec.consumers),
        "v_free": plgpu.Barrier(num_barriers=STAGES, num_arrivals=spec.consumers),
    }
    outputs = [jax.ShapeDtypeStruct(q.shape, q.dtype)]
    if spec.every_block:
        outputs.append(jax.ShapeDtypeStruct((spec.batch, spec.heads, spec.q_padded, spec.k_padded), jnp.float32))
    call = hopper.kernel(
        flash_gradient_of_queries,
        outputs=outputs,
        scratch=[memory, barriers],
        grid={"batch": spec.batch, "head": spec.heads, "tile": spec.q_tiles},
        warpgroups=spec.consumers + 1,
        cost=cost(spec, q, v, 3, pairs),
    )
    return call(*present.values())


def gradient_of_keys(spec: Spec, arrays: dict[str, Any], pairs: int, key_bias_gradient: bool) -> list[jax.Array]:
    """The gradients of k and v; with ``key_bias_gradient`` also that of the key bias, float32 (batch, kv_heads,
    k_padded).

    Args:
      spec: the constants.
      arrays: as in :func:`gradient_of_queries`, but with the last two axes of bias exchanged, and counts and blocks for
        tiles of keys.
      pairs: as there.
      key_bias_gradient: whether the gradient of the key bias is computed.
    """
    q, k, v = arrays["q"], arrays["k"], arrays["v"]
    head_dim, value_dim, size = q.shape[3], v.shape[3], spec.back_block
    present = {name: x for name, x in arrays.items() if x is not None}
    with_queries = [name for name in ("lse", "q_positions") if name in present]
    with_outputs = [name for name in ("delta",) if name in present]
    rows_of = [name for name in ("key_bias", "k_positions") if name in present]
    shape = (ROWS, size)

    def flash_gradient_of_keys(*references: Any) -> None:
        inputs = dict(zip(present, references, strict=False))
        *results, memory, barriers = references[len(present) :]
        batch, kv_head, tile = lax.axis_index("batch"), lax.axis_index("head"), lax.axis_index("tile")
        group = lax.axis_index(hopper.WARPGROUP)
        lists = (inputs["counts"], inputs["blocks"]) if "counts" in inputs else None
        blocks = tiles.visit(spec, lists, batch, kv_head, tile, transposed=True)

        @pl.when(group == spec.consumers)
        def _producer() -> None:
            if spec.consumers == 2:
                plgpu.set_max_registers(tiles.COPYING, action="decrease")

            def copy(step: Any, slot: Any) -> None:
                turn = lax.div(step, jnp.maximum(blocks.total, 1))
                head = kv_head * spec.group + turn
                rows = pl.ds(blocks.block(step - turn * blocks.total) * size, size)

                def more(names: Sequence[str], ready: Any) -> None:
                    for name in names:
                        plgpu.copy_gmem_to_smem(
                            inputs[name].at[(*tiles.layer(inputs[name], batch, head), rows)],
                            memory[name].at[slot],
                            ready,
                        )

                ready = barriers["q"].at[slot]
                plgpu.copy_gmem_to_smem(inputs["q"].at[batch, rows, head], memory["q"].at[slot], ready)
                more(with_queries, ready)
                if "bias" in inputs:
                    where = (*tiles.layer(inputs["bias"], batch, head), pl.ds(tile * spec.tile, spec.tile), rows)
                    plgpu.copy_gmem_to_smem(inputs["bias"].at[where], memory["bias"].at[slot], ready)
                ready = barriers["do"].at[slot]
                plgpu.copy_gmem_to_smem(inputs["do"].at[batch, rows, head], memory["do"].at[slot], ready)
                more(with_outputs, ready)

            def released(slot: Any) -> None:
                plgpu.barrier_wait(barriers["q_free"].at[slot])
                plgpu.barrier_wait(barriers["do_free"].at[slot])

            tiles.produce(blocks.total * spec.group, STAGES, copy, released)

        @pl.when(group < spec.consumers)
        def _consumer() -> None:
            if spec.consumers == 2:
                plgpu.set_max_registers(tiles.MULTIPLYING, action="increase")
            start = tile * spec.tile + group * ROWS
            rows, ready = pl.ds(start, ROWS), barriers["k"].at[group]
            keys, values = memory["k"].at[group], memory["v"].at[group]
            plgpu.copy_gmem_to_smem(inputs["k"].at[batch, rows, kv_head], keys, ready)
            plgpu.copy_gmem_to_smem(inputs["v"].at[batch, rows, kv_head], values, ready)
            for name in rows_of:
                plgpu.copy_gmem_to_smem(
                    inputs[name].at[(*tiles.layer(inputs[name], batch, kv_head), rows)], memory[name].at[group], ready
                )
            plgpu.barrier_wait(ready)
            row = {name: hopper.load(memory[name].at[group], plgpu.Layout.WGMMA.reduce(1)) for name in rows_of}

            def places(block: Any, slot: Any) -> tuple[jax.Array, jax.Array]:
                if "k_positions" in inputs:
                    return tiles.vector(memory["q_positions"].at[slot], shape, 1), lax.broadcast_in_dim(
                        row["k_positions"], shape, [0]
                    )
                return tiles.indices(shape, block * size, 1), tiles.indices(shape, start, 0)

            def step(cut: bool, turn: Any, index: Any, carry: Any) -> Any:
                of_keys, of_values, of_bias = carry
                slot = tiles.ring(turn * blocks.total + index, STAGES)
                plgpu.barrier_wait(barriers["q"].at[slot])
                products = hopper.multiply(keys, hopper.transposed(memory["q"].at[slot]))
                x, slope = tiles.logits(
                    spec, products, kv_head * spec.group + turn, lambda: places(blocks.block(index), slot)
                )
                if "key_bias" in inputs:
                    x += lax.broadcast_in_dim(row["key_bias"], shape, [0])
                if "bias" in inputs:
                    x += hopper.load(memory["bias"].at[slot, pl.ds(group * ROWS, ROWS)])
                if cut:
                    x = jnp.where(
                        tiles.visible(spec, *places(blocks.block(index), slot), given="k_positions" in inputs),
                        x,
                        -math.inf,
                    )
                weight = tiles.weights(
                    spec, x, tiles.vector(memory["lse"].at[slot], shape, 1) if "lse" in inputs else None
                )
                plgpu.barrier_wait(barriers["do"].at[slot])
                of_values = hopper.multiply(weight.astype(q.dtype), memory["do"].at[slot], of_values)
                if not key_bias_gradient:
                    weight, slope = tiles.joined(spec, weight, slope)
                gradient = hopper.multiply(values, hopper.transposed(memory["do"].at[slot]))
                delta = tiles.vector(memory["delta"].at[slot], shape, 1) if "delta" in inputs else None
                plgpu.barrier_arrive(barriers["do_free"].at[slot])
                gradient = tiles.gradient_of_logits(spec, weight, gradient, delta)
                if key_bias_gradient:
                    of_bias = of_bias + gradient.sum(axis=1)
                gradient = gradient if slope is None else gradient * slope
                of_keys = hopper.multiply(gradient.astype(q.dtype), memory["q"].at[slot], of_keys)
                plgpu.barrier_arrive(barriers["q_free"].at[slot])
                return of_keys, of_values, of_bias

            def one_head(turn: Any, carry: Any) -> Any:
                carry = tiles.loop(0, blocks.whole, lambda j, c: step(False, turn, j, c), carry)
                return tiles.loop(blocks.whole, blocks.total, lambda j, c: step(True, turn, j, c), carry)

            carry: Any = tuple(hopper.arrange(jnp.zeros((ROWS, width), jnp.float32)) for width in (head_dim, value_dim))
            carry += (
                hopper.arrange(jnp.zeros((ROWS,), jnp.float32), plgpu.Layout.WGMMA.reduce(1))
                if key_bias_gradient
                else None,
            )
            carry = one_head(jnp.int32(0), carry) if spec.group == 1 else tiles.loop(0, spec.group, one_head, carry)
            of_keys, of_values, of_bias = carry
            keys[...] = (of_keys * spec.scale).astype(q.dtype)
            values[...] = of_values.astype(q.dtype)
            if key_bias_gradient:
                memory["dbias"][group] = of_bias
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(keys, results[0].at[batch, rows, kv_head])
            plgpu.copy_smem_to_gmem(values, results[1].at[batch, rows, kv_head])
            if key_bias_gradient:
                plgpu.copy_smem_to_gmem(memory["dbias"].at[group], results[2].at[batch, kv_head, rows])
            plgpu.wait_smem_to_gmem(0)

    memory = {
        "k": tiles.shared((spec.consumers, ROWS, head_dim), q.dtype),
        "v": tiles.shared((spec.consumers, ROWS, value_dim), q.dtype),
        "q": tiles.shared((STAGES, size, head_dim), q.dtype),
        "do": tiles.shared((STAGES, size, value_dim), q.dtype),
        "dbias": plgpu.SMEM((spec.consumers, ROWS), jnp.float32) if key_bias_gradient else None,
    }
    memory |= {name: plgpu.SMEM((STAGES, size), present[name].dtype) for name in (*with_queries, *with_outputs)}
    memory |= {name: plgpu.SMEM((spec.consumers, ROWS), present[name].dtype) for name in rows_of}
    if "bias" in present:
        memory["bias"] = plgpu.SMEM((STAGES, spec.tile, size), jnp.float32)
    barriers = {
        "k": plgpu.Barrier(num_barriers=spec.consumers, num_arrivals=2 + len(rows_of)),
        "q": plgpu.Barrier(num_barriers=STAGES, num_arrivals=1 + len(with_queries) + ("bias" in present)),
        "do": plgpu.Barrier(num_barriers=STAGES, num_arrivals=1 + len(with_outputs)),
        "q_free": plgpu.Barrier(num_barriers=STAGES, num_arrivals=spec.consumers),
        "do_free": plgpu.Barrier(num_barriers=STAGES, num_arrivals=spec.consumers),
    }
    outputs = [jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)]
    if key_bias_gradient:
        outputs.append(jax.ShapeDtypeStruct((spec.batch, spec.kv_heads, spec.k_padded), jnp.float32))
    call = hopper.kernel(
        flash_gradient_of_keys,
        outputs=outputs,
        scratch=[memory, barriers],
        grid={"batch": spec.batch, "head": spec.kv_heads, "tile": spec.k_tiles},
        warpgroups=spec.consumers + 1,
        cost=cost(spec, q, v, 4, pairs),
    )
    return call(*present.values())
