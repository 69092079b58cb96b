"""The selective scan over a sequence that is split over devices.

Each device sends the product of its tokens' factors (0 where a document begins) and the state after its own tokens.
Then each processes its tokens again from their actual initial state: two passes instead of one, with n devices at work.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels import mesh
from pallas_kernels.dispatch import OPS
from pallas_kernels.documents import Documents
from pallas_kernels.selective_scan.call import ScanCall
from primitives import sequence


def objection(call: ScanCall) -> str | None:
    """Why passing states does not support the call, or None."""
    return sequence.objection(call.x.shape[1])


def selective_scan(call: ScanCall) -> tuple[jax.Array, jax.Array]:
    """The op."""

    def body(part: ScanCall) -> tuple[jax.Array, jax.Array]:
        run = OPS["selective_scan"].within
        _, state = run(part.replace(initial_state=None))
        if part.A is None:
            # The factor is what remains of ones if the tokens write nothing.
            ones = jnp.ones_like(state)
            _, factor = run(part.replace(x=jnp.zeros_like(part.x), initial_state=ones))
        else:
            factor = jnp.exp(jnp.sum(part.step, 1)[..., None] * part.A.astype(part.step.dtype))
            factor = Documents.of(part.starts).carried(factor)
        before, after = sequence.entering(factor, state, part.initial_state, jnp.multiply)
        return run(part.replace(initial_state=before))[0], after

    return mesh.split_call(body, call)
