"""The delta rule over a sequence that is split over devices.

Each device sends the product of its transitions and the state after its own tokens. The product is computed by the rule
itself, started from the identity with zero values, and is 0 where a document begins. Then each device processes its
tokens again from their actual initial state. That is two passes instead of one, with n devices at work.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels import mesh
from pallas_kernels.delta_rule.call import DeltaCall
from pallas_kernels.dispatch import OPS
from primitives import sequence


def objection(call: DeltaCall) -> str | None:
    """Why passing states does not support the call, or None."""
    return sequence.objection(call.q.shape[1])


def delta_rule(call: DeltaCall) -> tuple[jax.Array, jax.Array]:
    """The op."""

    def body(part: DeltaCall) -> tuple[jax.Array, jax.Array]:
        run = OPS["delta_rule"].within
        batch, _, heads, value_dim = part.v.shape
        size = part.k.shape[3]
        # State and product in one pass, as columns of one wider state.
        start = jnp.broadcast_to(
            jnp.eye(size, value_dim + size, value_dim, dtype=part.wide), (batch, heads, size, value_dim + size)
        )
        _, both = run(part.replace(v=jnp.pad(part.v, ((0, 0), (0, 0), (0, 0), (0, size))), initial_state=start))
        state, product = both[..., :value_dim], both[..., value_dim:]
        before, after = sequence.entering(
            product,
            state,
            part.initial_state,
            lambda product, state: jnp.einsum("bhij,bhjv->bhiv", product, state, precision="highest"),
        )
        return run(part.replace(initial_state=before))[0], after

    return mesh.split_call(body, call)
