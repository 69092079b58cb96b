"""Attention with a relative position bias that all blocks of a stack share: T5 (Raffel et al., 2020, arXiv:1910.10683),
section 2.1.

    s_ij = q_i . k_j + b_h[clip(j - i)]

The bias table is not a parameter of this mixer: its owner passes it to the first block, and each block passes it on.
"""

from __future__ import annotations

from typing import Any, Unpack

import jax

from layers.attention.multi_head import AttentionOptions, MultiHeadAttention
from layers.mixer import finite_padding
from layers.tokens import Tokens, continued


class SharedDistances(MultiHeadAttention):
    """Softmax attention with a bias per distance and head, passed from block to block: float32 (heads, span), in
    ascending order of key position - query position from ``-reach``. Parameters: those of :class:`MultiHeadAttention`.
    """

    shares = True

    def __init__(self, features: int, *, reach: int, scale: float | None = None, **options: Unpack[AttentionOptions]):
        """Args:
          reach: greatest distance with its own bias.
          scale: factor of the logits q . k; default head_dim ** -0.5.
          options: as in :class:`MultiHeadAttention`.

        Raises:
          ValueError: ``relative`` is given too.
        """
        if options.get("relative") is not None:
            raise ValueError(f"relative={options['relative']!r} has its own relative position bias: leave it out")
        super().__init__(features, scale=scale, **options)
        self.reach = reach

    def mix(self, x: jax.Array, tokens: Tokens, *beside: Any) -> Any:
        x = finite_padding(x, tokens.mask)
        places = tokens.places(x.shape[1]) if tokens.positions is not None or tokens.segment_ids is not None else None
        q, (k, v) = self.queries(x, places), self.keys_and_values(x, places)
        ids, numbers = tokens.segment_ids, self._numbers(beside)
        y = self.attend(q, k, v, x, mask=tokens.mask, positions=(places, places), segments=(ids, ids), **numbers)
        return self.finish(y), beside[0]

    def mix_next(self, x: jax.Array, state: Any, tokens: Tokens, *beside: Any) -> Any:
        x = finite_padding(x, tokens.mask)
        after = continued(x.shape[1], state.length, state.segment, tokens.mask, tokens.segment_ids)
        places = tokens.positions_or(after.positions)
        q, (k, v) = self.queries(x, places), self.keys_and_values(x, places)
        written, seen, segments = self.read({"key": k, "value": v}, tokens, state, after)
        numbers = self._numbers(beside)
        y = self.attend(q, seen.key, seen.value, x, positions=(places, seen.positions), segments=segments, **numbers)
        return self.finish(y), written, beside[0]

    def _numbers(self, beside: tuple[Any, ...]) -> dict[str, Any]:
        if not beside or beside[0] is None:
            raise ValueError(
                "SharedDistances needs the bias that blocks pass on: give its layers.Stack shared=, (heads, span)"
            )
        return {"relative_bias": beside[0], "relative_origin": -self.reach}
