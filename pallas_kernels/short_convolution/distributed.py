"""The short convolution over a sequence that is split over devices: each sends its neighbors the few tokens that they
read.
"""

from __future__ import annotations

import jax

from pallas_kernels import mesh
from pallas_kernels.dispatch import OPS
from pallas_kernels.documents import Documents
from pallas_kernels.short_convolution.call import ShortCall
from primitives import sequence


def objection(call: ShortCall) -> str | None:
    """Why exchanging tokens between neighbors does not support the call, or None."""
    length = call.x.shape[1]
    if (reason := sequence.objection(length)) is not None:
        return reason
    each, furthest = length // sequence.parts(), max(call.reach)
    return f"a token sees {furthest} tokens to one side, more than the {each} of a device" if each < furthest else None


def short_convolution(call: ShortCall) -> tuple[jax.Array]:
    """The op."""

    def body(part: ShortCall) -> tuple[jax.Array]:
        back, ahead = part.reach
        # A neighbor gets only the tokens of the document that continues there: the last one of this part, or the first.
        packed, first, last = Documents.of(part.starts), part.before, part.after
        before = sequence.tail(packed.last(part.x, 1), back, 0 if first is None else first) if back else None
        after = sequence.head(packed.continuing(part.x, 1), ahead, 0 if last is None else last) if ahead else None
        return OPS["short_convolution"].within(part.replace(before=before, after=after))

    return mesh.split_call(body, call)
