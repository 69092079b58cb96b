"""Neighborhood attention by the TPU kernels of attention (:mod:`pallas_kernels.neighborhood_attention.tiled`)."""

from __future__ import annotations

import jax

from pallas_kernels.attention.tpu import mosaic
from pallas_kernels.neighborhood_attention import tiled
from pallas_kernels.neighborhood_attention.call import NeighborhoodCall

SIZES = (128, 256, 512)
"""Sizes of blocks of queries and of keys: whole rows of lanes."""



def objection(call: NeighborhoodCall) -> str | None:
    """Why the kernels do not support the call, or None."""
    if call.bias is not None:
        return "bias is given, a table of offsets, which its tiles don't read"
    mask = _mask(call)
    if mask.entries > mosaic.LIST_LIMIT:
        return f"lists of the blocks that it visits, of {mask.entries} entries, do not fit scalar memory"
    return mosaic.objection(tiled.shapes(call, mask))


def attention(call: NeighborhoodCall) -> tuple[jax.Array]:
    """The op."""
    mask = _mask(call)
    out, _ = mosaic.attention(tiled.as_attention(call, mask))
    return (mask.queries.restored(out),)


def _mask(call: NeighborhoodCall) -> tiled.Neighborhood:
    return tiled.neighborhood(call.grid, tuple((q, k) for q in SIZES for k in SIZES), mosaic.LIST_LIMIT)
