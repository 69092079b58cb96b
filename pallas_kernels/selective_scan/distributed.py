"""The selective scan of a sequence that is split over devices: each sends exp(A times the sum of its steps) and the state its own tokens leave.

Then each device reads its tokens again from the state that they find: two passes instead of one, for n times as many devices at work.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import sequence
from pallas_kernels.dispatch import OPS
from pallas_kernels.exponential import softplus


def objection(x: jax.Array, *_: Any, **__: Any) -> str | None:
    """Why states can't be passed for the call, or None."""
    return sequence.objection(x.shape[1])


def selective_scan(
    x: jax.Array, delta: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, *, D: jax.Array | None, gate: jax.Array | None,
    delta_bias: jax.Array | None, delta_softplus: bool, initial_state: jax.Array | None, return_state: bool,
) -> Any:  # fmt: skip
    """The op; arguments as in :func:`pallas_kernels.selective_scan.selective_scan`, after its checks."""

    def body(x: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, gate: Any, bias: Any, initial: Any) -> Any:
        wide = jnp.promote_types(x.dtype, jnp.float32)
        step = delta.astype(wide)
        if bias is not None:
            step = step + bias.astype(wide)
        if delta_softplus:
            step = softplus(step)

        def run(start: jax.Array | None, gate: Any, D: Any) -> tuple[jax.Array, jax.Array]:
            return OPS["selective_scan"].within(
                x, step, A, B, C, D=D, gate=gate, delta_bias=None, delta_softplus=False, initial_state=start, return_state=True
            )  # fmt: skip

        _, state = run(None, None, None)
        factor = jnp.exp(jnp.sum(step, 1)[..., None] * A.astype(wide))
        before, after = sequence.entering(factor, state, initial, jnp.multiply)
        return run(before, gate, D)[0], after

    axes = (1, 1, None, 1, 1, None, None if gate is None else 1, None, None)
    out, state = sequence.split(body, (x, delta, A, B, C, D, gate, delta_bias, initial_state), axes, (1, None))
    return (out, state) if return_state else out
