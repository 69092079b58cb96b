"""What is computed again in the backward pass rather than kept for it, by name (T. Chen et al., Training Deep Nets with
Sublinear Memory Cost, arXiv:1604.06174).

    nothing   all that the gradient reads is kept
    dots      the results of matrix products with parameters are kept; norms, activations, attention and scans are
              computed again
    block     a block's input is kept; the block is computed again
    offload   as block, and the inputs of blocks wait in the host's memory

A policy needs a compiler that computes again only when the gradient gets there. That of jax 0.10 for CPUs does so
within a scan alone: there ``remat`` lowers the peak of memory together with ``scan=True``.
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
"""By name, what makes of ``call(state, x, ...)`` the same function with another backward pass; None leaves it."""


def policy(name: str | bool) -> str:
    """The name of a policy: "block" for True and "nothing" for False, also as text.

    Raises:
      ValueError: an unknown name.
    """
    known = {"True": "block", "False": NOTHING}.get(str(name), str(name))
    if known not in POLICIES:
        raise ValueError(f"remat={name!r}: the policies are {', '.join(POLICIES)}")
    return known
