"""Mixers made of mixers: where tokens mix, in which order they are read, and how several are combined.

Each takes the inner mixer as a spec (:data:`layers.mixer.MixerSpec`), so that combinations are data:
``{"name": "windowed", "window": 7, "inner": "attention"}``. MaxViT is convolution, then ``Windowed``
attention, then ``Grid`` attention; Vision Mamba is ``Bidirectional`` Mamba.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.mixer import Mixer, MixerSpec, create_mixer, register_mixer
from layers.position import grid_positions
from pallas_kernels import sequence


@register_mixer("row_major")
class RowMajor(Mixer):
    """Gives a grid to a mixer of sequences, as tokens in row-major order with their rows and columns as positions."""

    layouts = ("grid",)

    def __init__(self, features: int, *, inner: MixerSpec = "attention", hints: Mapping[str, Any] | None = None, rngs: nnx.Rngs):
        self.inner = create_mixer(inner, features, rngs=rngs, hints=hints)

    @property
    def complexity(self) -> float:
        return self.inner.complexity

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, positions: jax.Array | None = None) -> jax.Array:
        batch, height, width, features = x.shape
        tokens = x.reshape(batch, height * width, features)
        places = jnp.asarray(grid_positions(height, width))[None]
        return self.inner(tokens, None if mask is None else mask.reshape(batch, -1), places).reshape(x.shape)


def bidirectional(spec: MixerSpec, features: int, *, rngs: nnx.Rngs, hints: Mapping[str, Any] | None = None) -> Mixer:
    """Makes a mixer that sees all tokens: one that can only look back is read in both directions."""
    mixer = create_mixer(spec, features, rngs=rngs, hints=hints)
    return Bidirectional(features, inner=spec, rngs=rngs, hints=hints) if mixer.causal else mixer


def on_grid(mixer: Mixer, features: int, *, rngs: nnx.Rngs) -> Mixer:
    """The mixer itself if it takes grids, else the same mixer reading them in row-major order."""
    return mixer if "grid" in mixer.layouts else RowMajor(features, inner=mixer, rngs=rngs)


def on_sequence(mixer: Mixer) -> Mixer:
    """The mixer itself, which must take sequences.

    Raises:
      ValueError: it takes grids only.
    """
    if "sequence" not in mixer.layouts:
        raise ValueError(f"{type(mixer).__name__} takes grids only: it can't stand where tokens are a sequence")
    return mixer


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    rows, columns = (size, size) if isinstance(size, int) else size
    return int(rows), int(columns)


class _Partition(Mixer):
    """Cuts a grid into groups of ``window`` tokens, mixes inside each group, and puts the tokens back.

    A grid that the window does not divide is padded with masked tokens.
    """

    layouts = ("grid",)

    def __init__(
        self, features: int, *, window: int | Sequence[int] = 7, inner: MixerSpec = "attention", hints: Mapping[str, Any] | None = None, rngs: nnx.Rngs
    ):
        self.inner = on_grid(bidirectional(inner, features, rngs=rngs, hints=hints), features, rngs=rngs)
        self.window = _pair(window)

    @property
    def complexity(self) -> float:
        return 1.0  # the groups have a fixed size

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, positions: jax.Array | None = None) -> jax.Array:
        height, width = x.shape[1:3]
        pad = tuple(-size % window for size, window in zip((height, width), self.window, strict=True))
        if any(pad):
            mask = jnp.ones(x.shape[:3], bool) if mask is None else mask
            x, mask = (jnp.pad(a, ((0, 0), (0, pad[0]), (0, pad[1]), *[(0, 0)] * (a.ndim - 3))) for a in (x, mask))
        with sequence.folded():
            y = self._join(self.inner(self._cut(x), None if mask is None else self._cut(mask)), x.shape)
        return y[:, :height, :width]

    def _cut(self, x: jax.Array) -> jax.Array:
        raise NotImplementedError

    def _join(self, groups: jax.Array, shape: Sequence[int]) -> jax.Array:
        raise NotImplementedError


@register_mixer("windowed")
class Windowed(_Partition):
    """The inner mixer in non-overlapping windows of neighboring tokens (MaxViT's block attention, Swin's windows)."""

    def _cut(self, x: jax.Array) -> jax.Array:
        (batch, height, width), (rows, columns) = x.shape[:3], self.window
        x = x.reshape(batch, height // rows, rows, width // columns, columns, *x.shape[3:])
        return jnp.swapaxes(x, 2, 3).reshape(-1, rows, columns, *x.shape[5:])

    def _join(self, groups: jax.Array, shape: Sequence[int]) -> jax.Array:
        (batch, height, width), (rows, columns) = shape[:3], self.window
        x = groups.reshape(batch, height // rows, width // columns, rows, columns, -1)
        return jnp.swapaxes(x, 2, 3).reshape(shape)


@register_mixer("grid")
class Grid(_Partition):
    """The inner mixer among tokens a fixed stride apart, ``window`` of them spread over the whole grid (MaxViT's grid attention)."""

    def _cut(self, x: jax.Array) -> jax.Array:
        (batch, height, width), (rows, columns) = x.shape[:3], self.window
        x = x.reshape(batch, rows, height // rows, columns, width // columns, *x.shape[3:])
        return jnp.moveaxis(x, (2, 4), (1, 2)).reshape(-1, rows, columns, *x.shape[5:])

    def _join(self, groups: jax.Array, shape: Sequence[int]) -> jax.Array:
        (batch, height, width), (rows, columns) = shape[:3], self.window
        x = groups.reshape(batch, height // rows, width // columns, rows, columns, -1)
        return jnp.moveaxis(x, (1, 2), (2, 4)).reshape(shape)


@register_mixer("dilated")
class Dilated(Mixer):
    """The inner mixer among the tokens of a sequence that are ``rate`` apart: ``rate`` interleaved sequences.

    Causal where the inner mixer is: the state is one inner state for each of the interleaved sequences.
    """

    supports_causal = True

    def __init__(
        self,
        features: int,
        *,
        rate: int = 2,
        inner: MixerSpec = "attention",
        causal: bool = False,
        hints: Mapping[str, Any] | None = None,
        rngs: nnx.Rngs,
    ):
        if rate < 1:
            raise ValueError(f"dilation rate must be at least 1, got {rate}")
        self.inner = create_mixer(inner, features, causal=causal, rngs=rngs, hints=hints)
        self.rate, self.causal = rate, causal

    @property
    def complexity(self) -> float:
        return self.inner.complexity

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, positions: jax.Array | None = None) -> jax.Array:
        batch, length, features = x.shape
        mask = jnp.ones((batch, length), bool) if mask is None else mask
        pad = -length % self.rate
        x, mask = (jnp.pad(a, ((0, 0), (0, pad), *[(0, 0)] * (a.ndim - 2))) for a in (x, mask))
        y = self.inner(self._split(x), self._split(mask))
        y = jnp.swapaxes(y.reshape(batch, self.rate, -1, features), 1, 2).reshape(x.shape)
        return y[:, :length]

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32, context: jax.Array | None = None) -> Any:
        capacity = None if max_length is None else -(-max_length // self.rate)
        inner = self.inner.init_state(batch_size * self.rate, capacity, dtype, context)
        lanes = jax.tree.map(lambda leaf: leaf.reshape(batch_size, self.rate, *leaf.shape[1:]), inner)
        return {"lanes": lanes, "length": jnp.zeros((batch_size,), jnp.int32)}

    def extend(self, x: jax.Array, state: Any, mask: jax.Array | None = None) -> tuple[jax.Array, Any]:
        batch, new, features = x.shape
        mask = jnp.ones((batch, new), bool) if mask is None else mask
        # Lane r of a row takes its tokens r', r' + rate, ... where r' counts from the row's own length.
        steps = -(-new // self.rate)
        lane = jnp.arange(self.rate)
        source = ((lane - state["length"][:, None]) % self.rate)[..., None] + self.rate * jnp.arange(steps)
        inside, index = source < new, jnp.minimum(source, new - 1)
        row = jnp.arange(batch)[:, None, None]
        lanes = jax.tree.map(lambda leaf: leaf.reshape(batch * self.rate, *leaf.shape[2:]), state["lanes"])
        real = (mask[row, index] & inside).reshape(-1, steps)
        y, lanes = self.inner.extend(x[row, index].reshape(-1, steps, features), lanes, real)
        out = jnp.zeros_like(x).at[row, jnp.where(inside, index, new)].set(y.reshape(batch, self.rate, steps, features).astype(x.dtype), mode="drop")
        lanes = jax.tree.map(lambda leaf: leaf.reshape(batch, self.rate, *leaf.shape[1:]), lanes)
        return out, {"lanes": lanes, "length": state["length"] + mask.sum(1, dtype=jnp.int32)}

    def _split(self, x: jax.Array) -> jax.Array:
        batch, length = x.shape[:2]
        return jnp.swapaxes(x.reshape(batch, length // self.rate, self.rate, *x.shape[2:]), 1, 2).reshape(-1, length // self.rate, *x.shape[2:])


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
    """A causal mixer read in both directions, with parameters of its own for each; the outputs are averaged."""

    def __init__(self, features: int, *, inner: MixerSpec = "attention", hints: Mapping[str, Any] | None = None, rngs: nnx.Rngs):
        self.forward = create_mixer(inner, features, causal=True, rngs=rngs, hints=hints)
        self.backward = create_mixer(inner, features, causal=True, rngs=rngs, hints=hints)

    @property
    def complexity(self) -> float:
        return self.forward.complexity

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, positions: jax.Array | None = None) -> jax.Array:
        back = reverse(self.backward(reverse(x, mask), mask), mask)
        return 0.5 * (self.forward(x, mask) + back)


@register_mixer("scan_2d")
class Scan2D(Mixer):
    """A sequence mixer that reads a grid by rows and by columns, forwards and backwards; the outputs are averaged.

    VMamba (Liu et al., 2024) calls the four orders cross-scan. Each order has parameters of its own.
    """

    layouts = ("grid",)

    def __init__(self, features: int, *, inner: MixerSpec = "attention", hints: Mapping[str, Any] | None = None, rngs: nnx.Rngs):
        self.inner = nnx.List([create_mixer(inner, features, causal=True, rngs=rngs, hints=hints) for _ in range(4)])

    @property
    def complexity(self) -> float:
        return max(mixer.complexity for mixer in self.inner)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, positions: jax.Array | None = None) -> jax.Array:
        batch, height, width, features = x.shape
        total = jnp.zeros_like(x)
        for i, mixer in enumerate(self.inner):
            by_columns, backwards = divmod(i, 2)
            grid = jnp.swapaxes(x, 1, 2) if by_columns else x
            grid_mask = mask if mask is None or not by_columns else jnp.swapaxes(mask, 1, 2)
            tokens = grid.reshape(batch, height * width, features)
            # Padding of a grid is not trailing in these orders: sort it there, keeping the order of the rest.
            order = back = None
            token_mask = None
            if grid_mask is not None:
                token_mask = grid_mask.reshape(batch, -1)
                order = jnp.argsort(~token_mask, axis=1, stable=True)
                back = jnp.argsort(order, axis=1)
                tokens = jnp.take_along_axis(tokens, order[..., None], 1)
                token_mask = jnp.take_along_axis(token_mask, order, 1)
            tokens = reverse(tokens, token_mask) if backwards else tokens
            y = mixer(tokens, token_mask)
            y = reverse(y, token_mask) if backwards else y
            y = y if back is None else jnp.take_along_axis(y, back[..., None], 1)
            y = y.reshape(grid.shape)
            total = total + (jnp.swapaxes(y, 1, 2) if by_columns else y)
        return total / len(self.inner)


@register_mixer("parallel")
class Parallel(Mixer):
    """Several mixers side by side on the same tokens; the outputs are averaged."""

    supports_causal = True

    def __init__(
        self,
        features: int,
        *,
        branches: Sequence[MixerSpec] = ("attention", "attention"),
        causal: bool = False,
        hints: Mapping[str, Any] | None = None,
        rngs: nnx.Rngs,
    ):
        self.branches = nnx.List([create_mixer(spec, features, causal=causal, rngs=rngs, hints=hints) for spec in branches])
        self.causal = causal

    @property
    def complexity(self) -> float:
        return max(branch.complexity for branch in self.branches)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, positions: jax.Array | None = None) -> jax.Array:
        return functools.reduce(jnp.add, (branch(x, mask, positions) for branch in self.branches)) / len(self.branches)

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32, context: jax.Array | None = None) -> tuple[Any, ...]:
        return tuple(branch.init_state(batch_size, max_length, dtype, context) for branch in self.branches)

    def extend(self, x: jax.Array, state: tuple[Any, ...], mask: jax.Array | None = None) -> tuple[jax.Array, tuple[Any, ...]]:
        results = [branch.extend(x, old, mask) for branch, old in zip(self.branches, state, strict=True)]
        return functools.reduce(jnp.add, (y for y, _ in results)) / len(results), tuple(new for _, new in results)
