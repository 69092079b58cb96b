"""Attention to whose scores a number is added for each distance that all blocks of a stack share: T5 (Raffel et al.,
2020, arXiv:1910.10683), section 2.1.

    s_ij = q_i . k_j + b_h[clip(j - i)]

The numbers are no parameters here: their owner hands them to the first block, and blocks hand them on.
"""

from __future__ import annotations

from typing import Any, Unpack

import jax

from layers.attention.multi_head import AttentionOptions, MultiHeadAttention
from layers.mixer import finite_padding
from layers.tokens import Tokens, continued


class SharedDistances(MultiHeadAttention):
    """Softmax attention with a number for each distance and head, which blocks hand on, float32 (heads, span) by
    ascending key - query from ``-reach`` on. Parameters: those of :class:`MultiHeadAttention`.
    """

    shares = True

    def __init__(self, features: int, *, reach: int, scale: float | None = None, **options: Unpack[AttentionOptions]):
        """Args:
          reach: greatest distance with a number of its own.
          scale: of the products of queries and keys; default head_dim ** -0.5.
          options: as of :class:`MultiHeadAttention`.

        Raises:
          ValueError: other changes of scores by distance.
        """
        if options.get("relative") is not None:
            raise ValueError(f"relative={options['relative']!r} has its own numbers for distances: leave it out")
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
            raise ValueError("SharedDistances reads what blocks hand on: give its layers.Stack shared=, (heads, span)")
        return {"relative_bias": beside[0], "relative_origin": -self.reach}
