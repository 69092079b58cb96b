"""Randomized positions: Randomized Positional Encodings Boost Length Generalization of Transformers (Ruoss et al., ACL
2023, arXiv:2305.16843), section 3.

A sequence of n tokens gets n different positions from 0, ..., L - 1 in ascending order, sampled anew at each step,
instead of 0, ..., n - 1. A model trained on short sequences has then seen all positions of long ones. It works with any
positional encoding: rotary, ALiBi, tables, sinusoids.

In a causal model the position of a token must not depend on how many tokens follow. In evaluation, positions are
therefore sampled once for the longest sequence, and a shorter one takes the first of them: this differs from the
paper's samples for n tokens, but is the same for a sequence read whole and in pieces. In training they are sampled for
the length of the row, as in the paper, so that all positions are seen.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layers.drop import next_key
from layers.mixer import Mixer, MixerSpec, Place, create_mixer, register_mixer
from layers.module import Module
from layers.tokens import Tokens, continued


class RandomizedPlaces(Module):
    """Samples positions. Rows of a batch with equally many tokens get the same positions; each document of a row has
    its own sample, and padding is ignored.

    In training mode each call samples anew, from the stream "dropout"; in evaluation the sample is fixed by ``seed``. A
    sequence of n tokens gets the first n of one random permutation of all positions, sorted: all subsets of size n are
    equally probable.

    With ``longest`` no position depends on later tokens: in evaluation they are the first of a sorted sample of size
    ``longest``, in training the first of a sorted sample of the row's length, padding included.
    """

    paper = (167,)

    def __init__(self, max_length: int = 2048, *, longest: int | None = None, seed: int | None = None, rngs: nnx.Rngs):
        """Args:
          max_length: L, number of positions; the maximum number of tokens of a sequence.
          longest: number of tokens of the longest document, if positions must not depend on later tokens; None if they
            may.
          seed: seed of all samples; None samples anew in training, and is 0 in evaluation.

        Raises:
          ValueError: ``max_length`` below 1, or ``longest`` not from 1 to ``max_length``.
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
        """Positions (batch or 1, length) int32 of ``length`` tokens; padding has the largest ones, or with ``longest``
        arbitrary ones.

        Raises:
          ValueError: more tokens than ``max_length`` or ``longest``.
        """
        self.check(length)
        drawn = None if self.rngs is None or self.deterministic else next_key(self.rngs)
        if self.longest is None:
            key = jax.random.key(self.seed or 0) if drawn is None else drawn
            order = jax.random.permutation(key, self.max_length).astype(jnp.int32)
            return ordered(order, tokens, length)
        places = tokens.without("positions").places(length)
        if drawn is None:
            return self.at(places)
        return jnp.sort(jax.random.permutation(drawn, self.max_length)[:length]).astype(jnp.int32)[places]

    def at(self, places: jax.Array) -> jax.Array:
        """Positions in evaluation of the tokens at indices ``places`` (int32, from 0) of their documents; needs
        ``longest``.
        """
        assert self.longest is not None
        return jnp.asarray(_sample(self.seed or 0, self.longest, self.max_length))[places]

    def check(self, length: int | None) -> None:
        """Checks that there are positions for ``length`` tokens; None is not checked.

        Raises:
          ValueError: there are more tokens than ``longest`` or ``max_length``.
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
    """A sorted sample of ``count`` of the numbers 0 to ``positions - 1``, int32."""
    return np.sort(np.random.default_rng(seed).permutation(positions)[:count]).astype(np.int32)


def ordered(order: jax.Array, tokens: Tokens, length: int) -> jax.Array:
    """For each document of n tokens, the first n of ``order`` (positions,), sorted: (batch or 1, length) int32."""
    place = tokens.replace(positions=None).places(length)
    begins = tokens.starts()
    document = jnp.zeros_like(place) if begins is None else jnp.cumsum(begins, 1, dtype=jnp.int32)
    if tokens.mask is not None:
        document, place = jnp.where(tokens.mask, document, length), jnp.broadcast_to(place, tokens.mask.shape)
    return jax.lax.sort((document, order[place]), dimension=1, num_keys=2)[1]


@register_mixer("randomized_positions")
class RandomizedPositions(Mixer):
    """The inner mixer with randomized positions; it must be a mixer that uses positions.

    Each layer samples its own positions, as in the authors' code; a model made with ``randomized=`` gives all layers
    the same. Around a causal mixer, positions are those of :class:`RandomizedPlaces` with ``longest``, and sequences
    can be read in pieces.
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
          inner: a mixer with its own positional encoding.
          max_length, longest, seed: as in :class:`RandomizedPlaces`. For a causal mixer the default of ``longest`` is a
            quarter of ``max_length``: the paper's 2048 positions are for sequences of up to 500 tokens.

        Raises:
          ValueError: the inner mixer does not use positions, has a window that counts them, or is causal and counts
            positions itself when it reads in pieces.
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
                f"take another mixer, such as attention"
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
        """The state of the inner mixer.

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
