"""Rows of documents, and the same documents each in a row of its own, for mixers and for models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from layers.state import flatten_state
from tests.layers.mixer_cases import relative

Mix = Callable[[Any, Any, Any, Any], jax.Array]
"""(parameters, what is read, mask, segment ids or None) to an output for each token."""
TOLERANCE = {np.float32: 1e-4, np.float64: 1e-5}


@dataclasses.dataclass(frozen=True)
class Rows:
    """Two rows of three documents, of which the second has padding after them.

    Attributes:
      lengths: of the documents of each row.
      length: of a row.
    """

    lengths: tuple[tuple[int, ...], ...]
    length: int

    @classmethod
    def of(cls, multiple: int) -> Rows:
        """Rows whose documents begin at multiples."""
        long, short = -(-9 // multiple) * multiple, -(-2 // multiple) * multiple
        return cls(((long, short, 7), (short, long, 4)), long + short + 7)

    def documents(self) -> Iterator[tuple[int, slice]]:
        """The row and the place of each."""
        for row, lengths in enumerate(self.lengths):
            ends = np.cumsum(lengths)
            yield from ((row, slice(end - length, end)) for end, length in zip(ends, lengths, strict=True))

    @property
    def mask(self) -> np.ndarray:
        return np.arange(self.length) < np.sum(self.lengths, axis=1, keepdims=True)

    @property
    def ids(self) -> np.ndarray:
        """Ids that are in no order; those of padding are of no document."""
        ids = np.full((len(self.lengths), self.length), -1, np.int32)
        for number, (row, place) in enumerate(self.documents()):
            ids[row, place] = (5, 0, 3)[number % 3]
        return ids

    @property
    def longest(self) -> int:
        return max(map(max, self.lengths))

    def alone(self, x: np.ndarray, fill: Any = 0) -> np.ndarray:
        """``x`` (rows, length, ...) as a row for each document, padded to the longest."""
        rows = np.full((len(list(self.documents())), self.longest, *x.shape[2:]), fill, x.dtype)
        for number, (row, place) in enumerate(self.documents()):
            rows[number, : place.stop - place.start] = x[row, place]
        return rows


def both(mix: Mix, rows: Rows, params: Any, x: np.ndarray, weight: np.ndarray) -> tuple[Any, Any]:
    """Outputs and gradients, of parameters and, where it is floating, of ``x``: packed, as documents, and alone."""
    floating = np.issubdtype(x.dtype, np.floating)

    def loss(params: Any, x: Any, weight: Any, mask: Any, ids: Any) -> tuple[jax.Array, jax.Array]:
        y = mix(params, x, mask, ids)
        return jax.numpy.sum(jax.numpy.where(mask[..., None], weight * y**2 + y, 0)), y

    @jax.jit
    def run(params: Any, packed: Any, alone: Any) -> Any:
        slope = jax.grad(loss, (0, 1) if floating else 0, has_aux=True)
        return slope(params, *packed), slope(params, *alone, None)

    mask = rows.alone(rows.mask, False)
    hidden = x.dtype.type(np.nan if floating else 0)
    given = np.where(rows.mask[..., None], x, hidden) if floating else x
    (slope, y), (slope_alone, y_alone) = run(
        params, (given, weight, rows.mask, rows.ids), (rows.alone(x), rows.alone(weight), mask)
    )
    y, y_alone = rows.alone(np.asarray(y))[mask], np.asarray(y_alone)[mask]
    if not floating:
        return (y, (slope,)), (y_alone, (slope_alone,))
    return (y, (slope[0], rows.alone(np.asarray(slope[1])))), (y_alone, slope_alone)


def alone(run: Callable[..., Any], rows: Rows, length: int, *arrays: np.ndarray) -> list[Any]:
    """``run(*arrays, mask)`` for the documents, each in a row of its own of ``length``, two at a time."""
    more = (0, length - rows.longest)
    given = [np.pad(rows.alone(a), ((0, 0), more, (0, 0))[: a.ndim]) for a in (*arrays, rows.mask)]
    return [run(*(a[i : i + 2] for a in given)) for i in range(0, len(given[0]), 2)]


def by_one_program(
    gradient: Callable[..., Any], rows: Rows, length: int, x: np.ndarray, weight: np.ndarray
) -> tuple[Any, Any]:
    """As :func:`both`, by a program ``gradient(x, weight, mask, ids)`` that gives ((of parameters, of x), y)."""
    one = np.zeros((2, length), np.int32)
    (of_parameters, of_x), y = gradient(
        np.where(rows.mask[..., None], x, x.dtype.type(np.nan)), weight, rows.mask, rows.ids
    )
    runs = alone(lambda *given: gradient(*given, one), rows, length, x, weight)
    wanted, slopes_of_x = (
        np.concatenate(parts)[:, : rows.longest] for parts in ([r[1] for r in runs], [r[0][1] for r in runs])
    )
    slopes = jax.tree.map(lambda *parts: sum(map(np.asarray, parts)), *(r[0][0] for r in runs))
    real = rows.alone(rows.mask, False)
    found = rows.alone(np.asarray(y))[real], (of_parameters, rows.alone(np.asarray(of_x)))
    return found, (wanted[real], (slopes, slopes_of_x))


def close(a: Any, b: Any, tolerance: float) -> None:
    """Output and gradients agree, each gradient by the scale of the largest."""
    (y, slopes), (want, wanted) = a, b
    assert np.std(want) > 0
    assert relative(y, want) < tolerance
    for mine, theirs in zip(slopes, wanted, strict=True):
        found, expected = (flatten_state(s) if isinstance(s, nnx.State) else {"x": s} for s in (mine, theirs))
        scale = max(float(np.abs(g).max()) for g in expected.values())
        for name, g in expected.items():
            assert np.abs(np.asarray(found[name]) - np.asarray(g)).max() < tolerance * scale, name


def read(
    extend: Callable[..., Any],
    state: Any,
    rows: Rows,
    x: np.ndarray,
    size: int = 8,
    seed: int = 0,
    always: bool = False,
) -> np.ndarray:
    """The outputs for rows that are read piece by piece, each call another number of tokens of each row.

    ``extend(x, state, mask, ids)`` is given no ids where no document begins, unless it is ``always``.
    """
    rng = np.random.default_rng(seed)
    done, counts_of = np.zeros(len(x), int), rows.mask.sum(1)
    out: list[list[np.ndarray]] = [[] for _ in x]
    while (done < counts_of).any():
        counts = np.minimum(rng.integers(0, size + 1, len(x)), counts_of - done)
        mask = np.arange(size) < counts[:, None]
        piece, ids = np.zeros((len(x), size, *x.shape[2:]), x.dtype), np.full((len(x), size), -1, np.int32)
        for row, (start, count) in enumerate(zip(done, counts, strict=True)):
            piece[row, :count], ids[row, :count] = x[row, start : start + count], rows.ids[row, start : start + count]
        going_on = not always and all(
            done[r] and len({*ids[r, : counts[r]], rows.ids[r, done[r] - 1]}) == 1 for r in range(len(x))
        )
        y, state = jax.device_get(extend(piece, state, mask, None if going_on else ids))
        for row, count in enumerate(counts):
            out[row].append(y[row, :count])
        done += counts
    full = np.zeros((*x.shape[:2], out[0][0].shape[-1]))
    for row, parts in enumerate(out):
        full[row, : counts_of[row]] = np.concatenate(parts)
    return rows.alone(full)[rows.alone(rows.mask, False)]
