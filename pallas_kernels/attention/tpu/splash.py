"""JAX's own splash attention, for the calls on which it agrees with this op's definition."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention

from pallas_kernels import dispatch
from pallas_kernels.attention import blocks
from pallas_kernels.attention.call import AttentionCall
from pallas_kernels.mosaic_tpu import LANES
from pallas_kernels.mosaic_tpu import objection as tpu_objection

BLOCKS = (512, 256, LANES)


def objection(call: AttentionCall) -> str | None:
    """Why it does not support the call, or None."""
    q, k, v = call.q, call.k, call.v
    if not call.lacks("bias", "mask", "query_positions", "key_positions", "query_segments", "routes"):
        return "it takes only masks that are known while tracing: no bias, mask, positions, segments or routes"
    if (reason := call.plain()) is not None:
        return reason
    if not call.lacks("pattern", "score"):
        return "it takes only causal masks and windows, and no score"
    if call.normalize != "softmax" or call.return_lse:
        return "it has softmax only, and its log-sum-exp has no gradient"
    q_length, k_length = q.shape[1], k.shape[1]
    if q_length % LANES or k_length % LANES:
        return f"lengths {q_length} and {k_length} are not both multiples of {LANES}"
    if max(q.shape[3], v.shape[3]) > 256:
        return f"head_dim {max(q.shape[3], v.shape[3])} is above 256"
    if not all(seen.all() for seen in blocks.band_seen(*call.reach, q_length, k_length)):
        return "some queries attend to nothing, or some keys are not attended to"
    return tpu_objection(q, k, v)


def attention(call: AttentionCall) -> tuple[jax.Array, None]:
    """The op."""
    q, k, v = call.q, call.k, call.v
    shape = q.shape[1], k.shape[1]
    if call.reach == (None, None):
        seen: Any = splash_attention.FullMask(shape)
    elif call.reach == (None, 0):
        seen = splash_attention.CausalMask(shape)
    else:
        seen = splash_attention.LocalMask(shape, call.reach, 0)
    block_q, block_k = (next(b for b in BLOCKS if n % b == 0) for n in shape)
    sizes = splash_attention.BlockSizes(
        block_q=block_q, block_kv=block_k, block_q_dkv=block_q, block_kv_dkv=block_k, block_q_dq=block_q,
        block_kv_dq=block_k
    )  # fmt: skip
    kernel = splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([seen] * q.shape[2]), block_sizes=sizes, interpret=dispatch.interpreted()
    )  # fmt: skip
    # The kernel does not scale the logits.
    arrays = [jnp.swapaxes(x, 1, 2) for x in (call.scale * q, k, v)]
    out = jax.vmap(lambda *a: kernel(*a, sinks=call.sinks))(*arrays)
    return jnp.swapaxes(out, 1, 2).astype(q.dtype), None
