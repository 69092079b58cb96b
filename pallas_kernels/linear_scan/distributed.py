"""The elementwise linear recurrence over a sequence that is split over devices.

Each device sends exp of the sum of its decays (0 where a document begins) and the state after its own tokens. Then each
processes its tokens again from their actual initial state.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels import mesh
from pallas_kernels.dispatch import OPS
from pallas_kernels.documents import Documents
from pallas_kernels.linear_scan.call import LinearScanCall
from primitives import sequence


def objection(call: LinearScanCall) -> str | None:
    """Why passing states does not support the call, or None."""
    return sequence.objection(call.x.shape[1])


def linear_scan(call: LinearScanCall) -> tuple[jax.Array, jax.Array]:
    """The op."""

    def body(part: LinearScanCall) -> tuple[jax.Array, jax.Array]:
        run = OPS["linear_scan"].within
        _, state = run(part.replace(initial_state=None))
        kept = jnp.zeros_like(state) if part.decay is None else jnp.sum(part.decay.astype(state.dtype), 1)
        factor = Documents.of(part.starts).carried(jnp.exp(kept))
        before, after = sequence.entering(factor, state, part.initial_state, jnp.multiply)
        return run(part.replace(initial_state=before))[0], after

    return mesh.split_call(body, call)
