"""Rematerialization policies by name: what is recomputed in the backward pass instead of stored (T. Chen et al.,
Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174).

    nothing   everything that the gradient needs is stored
    dots      results of matrix products with parameters are stored; norms, activations, attention, scans are recomputed
    block     the input of each block is stored; the block is recomputed
    offload   as block, with the inputs of blocks in host memory

A policy saves memory only if the compiler recomputes a block just before its gradient needs it. The CPU compiler of jax
0.10 does so only inside a scan: there ``remat`` lowers peak memory only together with ``scan=True``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

Transform = Callable[[Callable[..., Any]], Callable[..., Any]]

NOTHING = "nothing"
_INPUT = "input of a block"


def _dots(call: Callable[..., Any]) -> Callable[..., Any]:
    return jax.checkpoint(call, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)


def _offload(call: Callable[..., Any]) -> Callable[..., Any]:
    def named(state: Any, x: jax.Array, *others: Any) -> Any:
        return call(state, checkpoint_name(x, _INPUT), *others)

    return jax.checkpoint(
        named,
        policy=jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[_INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    )


POLICIES: dict[str, Transform | None] = {NOTHING: None, "dots": _dots, "block": jax.checkpoint, "offload": _offload}
"""For each name a transformation of ``call(state, x, ...)`` that changes its backward pass only; None for no change."""


def policy(name: str | bool) -> str:
    """The name of a policy: "block" for True and "nothing" for False, which may also be given as text.

    Raises:
      ValueError: an unknown name.
    """
    known = {"True": "block", "False": NOTHING}.get(str(name), str(name))
    if known not in POLICIES:
        raise ValueError(f"remat={name!r}: the policies are {', '.join(POLICIES)}")
    return known
