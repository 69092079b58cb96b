"""Neighborhood attention by the Hopper kernels of attention (:mod:`pallas_kernels.neighborhood_attention.tiled`)."""

from __future__ import annotations

import jax

from pallas_kernels.attention.gpu import mosaic
from pallas_kernels.neighborhood_attention import tiled
from pallas_kernels.neighborhood_attention.call import NeighborhoodCall

BLOCKS = ((128, 128),)
"""Queries of a thread block, and the keys that it reads at a time."""



def objection(call: NeighborhoodCall) -> str | None:
    """Why the kernels do not support the call, or None."""
    if call.bias is not None:
        return "bias is given, a table of offsets, which its tiles don't read"
    return mosaic.objection(tiled.shapes(call, tiled.neighborhood(call.grid, BLOCKS)))


def attention(call: NeighborhoodCall) -> tuple[jax.Array]:
    """The op."""
    mask = tiled.neighborhood(call.grid, BLOCKS)
    out, _ = mosaic.attention(tiled.as_attention(call, mask))
    return (mask.queries.restored(out),)
