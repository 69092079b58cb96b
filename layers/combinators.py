"""Mixers made of other mixers: which tokens mix, in which order they are read, and how several mixers are combined.

Each takes the inner mixer as a spec (:data:`layers.mixer.MixerSpec`), so that combinations are data:
``{"name": "bidirectional", "inner": "mamba"}`` is Vision Mamba's. Windows are in ``layers.windows``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.mixer import Mixer, MixerSpec, Place, create_mixer, register_mixer
from layers.tokens import Tokens, grid_positions, last_segment


def _unaligned(inner: Mixer) -> frozenset[str]:
    """The fields that ``inner`` honors when tokens are reordered, so that documents may begin at any index."""
    return inner.honors - ({"segment_ids"} if inner.segment_multiple > 1 else set())


class Around(Mixer):
    """Base of the mixers that wrap another one and rearrange what is known of the tokens for it."""

    inner: Mixer

    @property
    def honors(self) -> frozenset[str]:  # type: ignore[override]
        return _unaligned(self.inner)

    @property
    def refusals(self) -> Any:  # type: ignore[override]
        return self.inner.refusals

    @property
    def complexity(self) -> float:
        return self.inner.complexity


@register_mixer("row_major")
class RowMajor(Around):
    """Passes a grid to a mixer of sequences as tokens in row-major order, with ``tokens.grid`` set.

    Args:
      inner: spec of a mixer of sequences.
    """

    layouts = ("grid",)

    def __init__(self, features: int, *, inner: MixerSpec = "attention", place: Place | None = None, rngs: nnx.Rngs):
        self.inner = create_mixer(inner, features, rngs=rngs, place=place)

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        batch, height, width, features = x.shape
        rows = tokens.rearranged(lambda a: a.reshape(a.shape[0], height * width, *a.shape[3:]), (height, width))
        return self.inner(x.reshape(batch, height * width, features), rows).reshape(x.shape)


def bidirectional(spec: MixerSpec, features: int, *, rngs: nnx.Rngs, place: Place | None = None) -> Mixer:
    """Makes a mixer in which every token sees all others: a causal one is wrapped in :class:`Bidirectional`."""
    mixer = create_mixer(spec, features, rngs=rngs, place=place)
    return Bidirectional(features, inner=spec, rngs=rngs, place=place) if mixer.causal else mixer


def on_grid(mixer: Mixer, features: int, *, rngs: nnx.Rngs) -> Mixer:
    """The mixer itself if it takes grids, else the mixer wrapped in :class:`RowMajor`."""
    return mixer if "grid" in mixer.layouts else RowMajor(features, inner=mixer, rngs=rngs)


def on_sequence(mixer: Mixer) -> Mixer:
    """The mixer itself, which must take sequences.

    Raises:
      ValueError: it takes grids only.
    """
    if "sequence" not in mixer.layouts:
        raise ValueError(f"{type(mixer).__name__} takes grids only: it can't be used where tokens are a sequence")
    return mixer


@register_mixer("dilated")
class Dilated(Around):
    """Applies the inner mixer to tokens ``rate`` apart: to each of the ``rate`` interleaved subsequences.

    It is causal if the inner mixer is; the state holds an inner state for each of the interleaved subsequences.

    Raises:
      ValueError: a rate below 1.
    """

    supports_causal = True

    def __init__(
        self,
        features: int,
        *,
        rate: int = 2,
        inner: MixerSpec = "attention",
        causal: bool = False,
        place: Place | None = None,
        rngs: nnx.Rngs,
    ):
        if rate < 1:
            raise ValueError(f"dilation rate must be at least 1, got {rate}")
        self.inner = create_mixer(inner, features, causal=causal, rngs=rngs, place=place)
        self.rate, self.causal = rate, causal

    @property
    def honors(self) -> frozenset[str]:  # type: ignore[override]
        return self.inner.honors

    @property
    def segment_multiple(self) -> int:  # type: ignore[override]
        # A document is split into the same subsequences wherever it begins; only their order differs.
        multiple = self.inner.segment_multiple
        return multiple if multiple == 1 else multiple * self.rate

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        batch, length, features = x.shape
        pad = -length % self.rate

        def split(a: jax.Array) -> jax.Array:
            a = jnp.broadcast_to(a, (batch, *a.shape[1:]))
            return self._split(jnp.pad(a, ((0, 0), (0, pad), *[(0, 0)] * (a.ndim - 2))))

        if pad:
            tokens = tokens.replace(mask=jnp.ones((batch, length), bool) if tokens.mask is None else tokens.mask)
        y = self.inner(split(x), tokens.rearranged(split))
        return jnp.swapaxes(y.reshape(batch, self.rate, -1, features), 1, 2).reshape(batch, length + pad, features)[
            :, :length
        ]

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> Any:
        capacity = None if max_length is None else -(-max_length // self.rate)
        inner = self.inner.init_state(batch_size * self.rate, capacity, dtype)
        lanes = jax.tree.map(lambda leaf: leaf.reshape(batch_size, self.rate, *leaf.shape[1:]), inner)
        return {
            "lanes": lanes,
            "length": jnp.zeros((batch_size,), jnp.int32),
            "segment": jnp.zeros((batch_size,), jnp.int32),
        }

    def mix_next(self, x: jax.Array, state: Any, tokens: Tokens) -> tuple[jax.Array, Any]:
        batch, new, features = x.shape
        mask = jnp.ones((batch, new), bool) if tokens.mask is None else tokens.mask
        segment = state["segment"]
        if tokens.segment_ids is not None:
            segment = last_segment(tokens.segment_ids, mask, segment)
        elif "segment_ids" in self.honors:
            # A lane may not have read any token of the current document, and then does not know its id.
            tokens = tokens.replace(segment_ids=jnp.broadcast_to(segment[:, None], (batch, new)))
        # Lane r of a row takes the new tokens r', r' + rate, ...; r' depends on the length that the row has read.
        steps = -(-new // self.rate)
        lane = jnp.arange(self.rate)
        source = ((lane - state["length"][:, None]) % self.rate)[..., None] + self.rate * jnp.arange(steps)
        inside, index = source < new, jnp.minimum(source, new - 1)
        row = jnp.arange(batch)[:, None, None]
        lanes = jax.tree.map(lambda leaf: leaf.reshape(batch * self.rate, *leaf.shape[2:]), state["lanes"])

        def gather(a: jax.Array) -> jax.Array:
            return a[row, index].reshape(-1, steps, *a.shape[2:])

        known = tokens.rearranged(gather).replace(mask=(mask[row, index] & inside).reshape(-1, steps))
        y, lanes = self.inner.extend(gather(x), lanes, known)
        out = (
            jnp.zeros_like(x)
            .at[row, jnp.where(inside, index, new)]
            .set(y.reshape(batch, self.rate, steps, features).astype(x.dtype), mode="drop")
        )
        lanes = jax.tree.map(lambda leaf: leaf.reshape(batch, self.rate, *leaf.shape[1:]), lanes)
        return out, {"lanes": lanes, "length": state["length"] + mask.sum(1, dtype=jnp.int32), "segment": segment}

    def _split(self, x: jax.Array) -> jax.Array:
        batch, length = x.shape[:2]
        return jnp.swapaxes(x.reshape(batch, length // self.rate, self.rate, *x.shape[2:]), 1, 2).reshape(
            -1, length // self.rate, *x.shape[2:]
        )


def reverse(x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Reverses each row's real tokens along axis 1, leaving trailing padding where it is."""
    if mask is None:
        return x[:, ::-1]
    length = mask.sum(1, dtype=jnp.int32)[:, None]
    place = jnp.arange(x.shape[1])
    index = jnp.where(place < length, length - 1 - place, place)
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)


@register_mixer("bidirectional")
class Bidirectional(Mixer):
    """A causal mixer applied in both directions, each with its own parameters; the outputs are averaged.

    In the backward direction positions are counted from the last token, so that they increase in the order of reading;
    rows and columns of a grid are unchanged.

    Raises:
      ValueError: an inner mixer with a rotary embedding on a reference grid, which the backward direction would lose.
    """

    def __init__(self, features: int, *, inner: MixerSpec = "attention", place: Place | None = None, rngs: nnx.Rngs):
        self.forward = create_mixer(inner, features, causal=True, rngs=rngs, place=place)
        self.backward = create_mixer(inner, features, causal=True, rngs=rngs, place=place)
        if getattr(getattr(self.backward, "rotary", None), "grid", None) is not None:
            raise ValueError(
                "a rotary embedding on a reference grid can't be read in both directions: leave its grid out"
            )

    @property
    def honors(self) -> frozenset[str]:  # type: ignore[override]
        return _unaligned(self.forward)

    @property
    def complexity(self) -> float:
        return self.forward.complexity

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        def turned(a: jax.Array) -> jax.Array:
            return reverse(jnp.broadcast_to(a, (x.shape[0], *a.shape[1:])), tokens.mask)

        known = tokens
        if tokens.positions is not None and tokens.positions.ndim == 2:
            known = known.replace(positions=tokens.positions.max(1, keepdims=True) - tokens.positions)
        elif tokens.positions is None and "positions" in self.backward.honors:
            known = known.replace(positions=tokens.grid_places(x.shape[1]))
        back = turned(self.backward(turned(x), known.rearranged(turned)))
        return 0.5 * (self.forward(x, tokens) + back)


@register_mixer("scan_2d")
class Scan2D(Mixer):
    """A sequence mixer that reads a grid by rows and by columns, forwards and backwards; the outputs are averaged.

    VMamba (Liu et al., 2024, arXiv:2401.10166) calls the four orders cross-scan. Each order has its own parameters.
    Mixers that use positions get the rows and columns of the tokens in every order.

    Args:
      inner: spec of a causal mixer, of which four are made.
    """

    layouts = ("grid",)

    def __init__(self, features: int, *, inner: MixerSpec = "attention", place: Place | None = None, rngs: nnx.Rngs):
        self.inner = nnx.List([create_mixer(inner, features, causal=True, rngs=rngs, place=place) for _ in range(4)])

    @property
    def honors(self) -> frozenset[str]:  # type: ignore[override]
        return self.inner[0].honors - {"segment_ids"}

    @property
    def complexity(self) -> float:
        return max(mixer.complexity for mixer in self.inner)

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        (batch, height, width, features), total = x.shape, jnp.zeros_like(x)
        if tokens.positions is None and "positions" in self.honors:
            tokens = tokens.replace(positions=jnp.asarray(grid_positions(height, width)).reshape(1, height, width, 2))
        for i, mixer in enumerate(self.inner):
            move, back = self._order(batch, tokens.mask, by_columns=i >= 2, backwards=bool(i % 2))
            y = back(mixer(move(x), tokens.rearranged(move))).reshape(
                batch, *((width, height) if i >= 2 else (height, width)), features
            )
            total = total + (jnp.swapaxes(y, 1, 2) if i >= 2 else y)
        return total / len(self.inner)

    @staticmethod
    def _order(
        batch: int, mask: jax.Array | None, *, by_columns: bool, backwards: bool
    ) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
        """Functions that rearrange per-token arrays from the grid to the order of reading, and from there to the
        sequence of the grid, transposed if ``by_columns``.
        """

        def line(a: jax.Array) -> jax.Array:
            a = jnp.swapaxes(a, 1, 2) if by_columns else a
            a = jnp.broadcast_to(a, (batch, *a.shape[1:]))
            return a.reshape(batch, -1, *a.shape[3:])

        def take(a: jax.Array, index: jax.Array) -> jax.Array:
            return jnp.take_along_axis(a, index.reshape(*index.shape, *[1] * (a.ndim - 2)), axis=1)

        if mask is None:
            return (lambda a: reverse(line(a)) if backwards else line(a)), (lambda y: reverse(y) if backwards else y)
        # Padding of a grid is not trailing in these orders: sort it to the end, keeping the order of the rest.
        order = jnp.argsort(~line(mask), axis=1, stable=True)
        inverse, real = jnp.argsort(order, axis=1), take(line(mask), order)
        return (
            lambda a: reverse(take(line(a), order), real) if backwards else take(line(a), order),
            lambda y: take(reverse(y, real) if backwards else y, inverse),
        )


@register_mixer("parallel")
class Parallel(Mixer):
    """Several mixers applied to the same tokens in parallel; the outputs are averaged.

    Args:
      branches: specs of the mixers.
      causal: whether all of them must be causal.
    """

    supports_causal = True

    def __init__(
        self,
        features: int,
        *,
        branches: Sequence[MixerSpec] = ("attention", "attention"),
        causal: bool = False,
        place: Place | None = None,
        rngs: nnx.Rngs,
    ):
        self.branches = nnx.List(
            [create_mixer(spec, features, causal=causal, rngs=rngs, place=place) for spec in branches]
        )
        self.causal = causal

    @property
    def honors(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset.intersection(*(branch.honors for branch in self.branches))

    @property
    def segment_multiple(self) -> int:  # type: ignore[override]
        return math.lcm(*(branch.segment_multiple for branch in self.branches))

    @property
    def complexity(self) -> float:
        return max(branch.complexity for branch in self.branches)

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        return self.join([branch(x, tokens) for branch in self.branches])

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> tuple[Any, ...]:
        return tuple(branch.init_state(batch_size, max_length, dtype) for branch in self.branches)

    def mix_next(self, x: jax.Array, state: tuple[Any, ...], tokens: Tokens) -> tuple[jax.Array, tuple[Any, ...]]:
        results = [branch.extend(x, old, tokens) for branch, old in zip(self.branches, state, strict=True)]
        return self.join([y for y, _ in results]), tuple(new for _, new in results)

    def join(self, outputs: Sequence[jax.Array]) -> jax.Array:
        """Combines the outputs (batch, length, features) of the branches: their average."""
        return functools.reduce(jnp.add, outputs) / len(outputs)
