"""Randomized positions: Randomized Positional Encodings Boost Length Generalization of Transformers (Ruoss et al., ACL
2023, arXiv:2305.16843), section 3.

A sequence of n tokens gets n different positions out of 0, ..., L - 1 in ascending order, drawn anew at each step, in
place of 0, ..., n - 1. A model that was trained on short sequences has then seen all positions of long ones. It goes
around any way to tell positions: rotary, ALiBi, tables, sines and cosines.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.mixer import Mixer, MixerSpec, Place, create_mixer, register_mixer
from layers.module import Module
from layers.tokens import Tokens


class RandomizedPlaces(Module):
    """Draws positions. All rows of a batch with equally many tokens get the same; documents of a row are drawn each by
    itself, and padding takes no part.

    In training mode each call draws anew, from the stream "dropout"; in evaluation it draws what ``seed`` says. A
    sequence of n tokens gets the first n of one random order of all positions, sorted: any n are equally probable.
    """

    paper = (167,)

    def __init__(self, max_length: int = 2048, *, seed: int | None = None, rngs: nnx.Rngs):
        """Args:
          max_length: L; sequences have fewer tokens.
          seed: of all draws; None draws anew in training, and in evaluation is 0.

        Raises:
          ValueError: no positions.
        """
        if max_length < 1:
            raise ValueError(f"positions are drawn out of max_length, at least 1; got {max_length}")
        self.max_length, self.seed, self.deterministic = max_length, seed, False
        self.rngs = rngs.dropout.fork() if seed is None else None

    def __call__(self, tokens: Tokens, length: int) -> jax.Array:
        """Positions (batch or 1, length) int32 of tokens of which this is known; those of padding are the largest.

        Raises:
          ValueError: more tokens than positions.
        """
        if length > self.max_length:
            raise ValueError(
                f"{length} tokens can't have different positions out of max_length={self.max_length}: give more"
            )
        drawn = None if self.rngs is None or self.deterministic else self.rngs()
        key = jax.random.key(self.seed or 0) if drawn is None else drawn
        order = jax.random.permutation(key, self.max_length).astype(jnp.int32)
        return ordered(order, tokens, length)


def ordered(order: jax.Array, tokens: Tokens, length: int) -> jax.Array:
    """The first of ``order`` (positions,) in ascending order, in each document: (batch or 1, length) int32."""
    place = tokens.replace(positions=None).places(length)
    begins = tokens.starts()
    document = jnp.zeros_like(place) if begins is None else jnp.cumsum(begins, 1, dtype=jnp.int32)
    if tokens.mask is not None:
        document, place = jnp.where(tokens.mask, document, length), jnp.broadcast_to(place, tokens.mask.shape)
    return jax.lax.sort((document, order[place]), dimension=1, num_keys=2)[1]


@register_mixer("randomized_positions")
class RandomizedPositions(Mixer):
    """The inner mixer with randomized positions, which it must have use for.

    It is bidirectional only: a token that looks back does not know how many follow, of which the draw depends. What one
    layer draws is not what another does, as in the authors' code; a model that is made with randomized positions of its
    own gives all layers the same.
    """

    def __init__(
        self,
        features: int,
        *,
        inner: MixerSpec = "attention",
        max_length: int = 2048,
        seed: int | None = None,
        place: Place | None = None,
        rngs: nnx.Rngs,
    ):
        """Args:
          inner: which mixer, with its own way to tell positions.
          max_length, seed: of :class:`RandomizedPlaces`.

        Raises:
          ValueError: the inner mixer has no use for positions, or looks back only.
        """
        self.inner = create_mixer(inner, features, rngs=rngs, place=place)
        if "positions" not in self.inner.honors or self.inner.causal:
            raise ValueError(
                f"randomized positions go around a bidirectional mixer that uses positions, and "
                f"{type(self.inner).__name__} {'looks back only' if self.inner.causal else 'does not'}"
            )
        self.places = RandomizedPlaces(max_length, seed=seed, rngs=rngs)

    @property
    def honors(self) -> frozenset[str]:  # type: ignore[override]
        return self.inner.honors - {"positions"}

    @property
    def refusals(self) -> Any:  # type: ignore[override]
        return {**self.inner.refusals, "positions": "it draws them: leave positions out"}

    @property
    def complexity(self) -> float:
        return self.inner.complexity

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        return self.inner(x, tokens.replace(positions=self.places(tokens, x.shape[1])))
