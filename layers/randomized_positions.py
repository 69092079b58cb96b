"""Randomized positions: Randomized Positional Encodings Boost Length Generalization of Transformers (Ruoss et al., ACL
2023, arXiv:2305.16843), section 3.

A sequence of n tokens gets n different positions out of 0, ..., L - 1 in ascending order, drawn anew at each step, in
place of 0, ..., n - 1. A model that was trained on short sequences has then seen all positions of long ones. It goes
around any way to tell positions: rotary, ALiBi, tables, sines and cosines.

A token that looks back may not know how many follow, and its position may not depend on it. Where positions are drawn
once and for all, in evaluation and piece by piece, they are drawn for the longest sequence that is to be read, and a
shorter one takes the first of them: not what the paper draws for n tokens, but the same for a sequence as a whole and
in pieces. In training they are drawn for the length of the row, as in the paper, so that all positions are seen.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layers.mixer import Mixer, MixerSpec, Place, create_mixer, register_mixer
from layers.module import Module
from layers.tokens import Tokens, continued


class RandomizedPlaces(Module):
    """Draws positions. All rows of a batch with equally many tokens get the same; documents of a row are drawn each by
    itself, and padding takes no part.

    In training mode each call draws anew, from the stream "dropout"; in evaluation it draws what ``seed`` says. A
    sequence of n tokens gets the first n of one random order of all positions, sorted: any n are equally probable.

    With ``longest`` no position depends on later tokens: those of evaluation are the first of ``longest`` sorted ones,
    and those of training the first of as many as the row has places, padding included.
    """

    paper = (167,)

    def __init__(self, max_length: int = 2048, *, longest: int | None = None, seed: int | None = None, rngs: nnx.Rngs):
        """Args:
          max_length: L; sequences have fewer tokens.
          longest: tokens of the longest document, where no position may depend on later tokens; None: they may.
          seed: of all draws; None draws anew in training, and in evaluation is 0.

        Raises:
          ValueError: no positions, or a longest document without tokens or with more than positions.
        """
        if max_length < 1:
            raise ValueError(f"positions are drawn out of max_length, at least 1; got {max_length}")
        if longest is not None and not 1 <= longest <= max_length:
            raise ValueError(
                f"longest is from 1 to max_length={max_length}, of which positions are drawn; got {longest}"
            )
        self.max_length, self.longest, self.seed, self.deterministic = max_length, longest, seed, False
        self.rngs = rngs.dropout.fork() if seed is None else None

    def __call__(self, tokens: Tokens, length: int) -> jax.Array:
        """Positions (batch or 1, length) int32 of tokens of which this is known; those of padding are the largest, or
        where they depend on no later token, any.

        Raises:
          ValueError: more tokens than positions, or than the longest document has.
        """
        self.check(length)
        drawn = None if self.rngs is None or self.deterministic else self.rngs()
        if self.longest is None:
            key = jax.random.key(self.seed or 0) if drawn is None else drawn
            order = jax.random.permutation(key, self.max_length).astype(jnp.int32)
            return ordered(order, tokens, length)
        places = tokens.without("positions").places(length)
        if drawn is None:
            return self.at(places)
        return jnp.sort(jax.random.permutation(drawn, self.max_length)[:length]).astype(jnp.int32)[places]

    def at(self, places: jax.Array) -> jax.Array:
        """Positions of tokens that are at ``places`` of their documents, from 0 on, as evaluation draws them."""
        assert self.longest is not None
        return jnp.asarray(_sample(self.seed or 0, self.longest, self.max_length))[places]

    def check(self, length: int | None) -> None:
        """Raises where there are no positions for ``length`` tokens.

        Raises:
          ValueError: so it is.
        """
        if length is None:
            return
        if self.longest is not None and length > self.longest:
            raise ValueError(
                f"positions were drawn for longest={self.longest} tokens, got {length}: give a larger longest, with "
                f"max_length a few times as large"
            )
        if length > self.max_length:
            raise ValueError(
                f"{length} tokens can't have different positions out of max_length={self.max_length}: give more"
            )


@functools.cache
def _sample(seed: int, count: int, positions: int) -> np.ndarray:
    """A sorted sample of ``count`` of ``positions``, int32."""
    return np.sort(np.random.default_rng(seed).permutation(positions)[:count]).astype(np.int32)


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

    What one layer draws is not what another does, as in the authors' code; a model that is made with ``randomized=``
    gives all layers the same. Around a mixer that looks back, positions are those of :class:`RandomizedPlaces` with
    ``longest``, and sequences can be read piece by piece.
    """

    supports_causal = True

    def __init__(
        self,
        features: int,
        *,
        inner: MixerSpec = "attention",
        max_length: int = 2048,
        longest: int | None = None,
        seed: int | None = None,
        causal: bool = False,
        place: Place | None = None,
        rngs: nnx.Rngs,
    ):
        """Args:
          inner: which mixer, with its own way to tell positions.
          max_length, longest, seed: of :class:`RandomizedPlaces`. ``longest=None`` of a mixer that looks back is a
            quarter of ``max_length``: the paper's 2048 positions are for sequences of up to 500 tokens.

        Raises:
          ValueError: the inner mixer has no use for positions, or counts tokens by them, or looks back and can't be
            given positions piece by piece.
        """
        self.inner = create_mixer(inner, features, causal=causal, rngs=rngs, place=place)
        self.causal, name = self.inner.causal, type(self.inner).__name__
        if "positions" not in self.inner.honors:
            raise ValueError(f"randomized positions go around a mixer that uses positions, and {name} does not")
        if any(getattr(self.inner, part, None) is not None for part in ("window", "visible")):
            raise ValueError(
                f"{name} has a window, which counts positions, and randomized ones are far apart: leave it out"
            )
        if self.causal and not self.inner.takes_positions:
            raise ValueError(
                f"{name} counts the positions of what it reads piece by piece, and can't be given randomized ones: "
                f"take another mixer, as attention"
            )
        if longest is None and self.causal:
            longest = max(1, max_length // 4)
        self.places = RandomizedPlaces(max_length, longest=longest, seed=seed, rngs=rngs)

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

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> Any:
        """The inner mixer's.

        Raises:
          ValueError: ``max_length`` is more than ``longest``.
        """
        if self.causal:
            self.places.check(max_length)
        return self.inner.init_state(batch_size, max_length, dtype)

    def mix_next(self, x: jax.Array, state: Any, tokens: Tokens) -> tuple[jax.Array, Any]:
        """As :meth:`Mixer.mix_next`, with the positions of evaluation."""
        after = continued(x.shape[1], state.length, state.segment, tokens.mask, tokens.segment_ids)
        return self.inner.extend(x, state, tokens.replace(positions=self.places.at(after.positions)))
