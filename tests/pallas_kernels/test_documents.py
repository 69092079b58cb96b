"""Packed documents in the recurrent ops: a row of several is each of them alone, outputs, last state and gradients, in
float64; and nothing at all passes between them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels import documents
from pallas_kernels.dispatch import OPS, Case
from tests.pallas_kernels.test_ops import arrays_of, find, is_floating
from tests.tiers import tiered

Arrays = dict[str, Any]
TOKENS = {
    "short_convolution": ("x", "mask"),
    "selective_scan": ("x", "delta", "B", "C", "gate"),
    "linear_attention": ("q", "k", "v", "decay", "value_decay", "backward_decay"),
    "linear_scan": ("x", "decay"),
    "delta_rule": ("q", "k", "v", "beta", "decay", "read_key"),
}
"""The arrays that have tokens, at axis 1."""
STATES = ("state", "initial_state")
# A form of each op, and what takes another path.
QUICK = {
    "short_convolution": ("packed", "packed_centered"),
    "selective_scan": ("packed_grouped",),
    "linear_attention": ("packed_token", "packed_padded_key", "packed_both_ways"),
    "linear_scan": ("packed",),
    "delta_rule": ("packed_two_steps",),
}
# Others of which the reference, one loop over tokens, has a line of its own.
MORE = {
    "short_convolution": ("packed_each",),
    "selective_scan": ("packed_implicit",),
    "linear_attention": ("packed_exclusive", "both_ways_value", "two_decays_key"),
    "linear_scan": (),
    "delta_rule": ("packed_key_two_steps",),
}


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The documents of packed rows, each in a row of its own.

    Attributes:
      row: (documents,), where each comes from.
      tokens: (documents, longest), which of its row's tokens it has; padding is trailing.
      real: bool of the same shape.
      first: bool (documents,), those that go on from the state.
      document, place: (batch, length), where each token went.
      last: (batch,), the last document of each row.
    """

    row: np.ndarray
    tokens: np.ndarray
    real: np.ndarray
    first: np.ndarray
    document: np.ndarray
    place: np.ndarray
    last: np.ndarray

    @classmethod
    def cut(cls, starts: np.ndarray) -> Pieces:
        length = starts.shape[1]
        spans = []
        document, place, last = (np.zeros(shape, int) for shape in (starts.shape, starts.shape, len(starts)))
        for row, places in enumerate(map(np.flatnonzero, starts)):
            cuts = [0, *places, length]
            for number, (begin, end) in enumerate(itertools.pairwise(cuts)):
                if begin == end:
                    continue
                document[row, begin:end], place[row, begin:end] = len(spans), np.arange(end - begin)
                last[row] = len(spans)
                spans.append((row, begin, end, number == 0))
        row, begin, end, first = map(np.asarray, zip(*spans))
        tokens = begin[:, None] + np.arange((end - begin).max())
        return cls(row, np.minimum(tokens, length - 1), tokens < end[:, None], first, document, place, last)

    def apart(self, x: jax.Array) -> jax.Array:
        """(batch, length * steps, ...) to (documents, longest * steps, ...)."""
        by_token = x.reshape(x.shape[0], self.document.shape[1], -1, *x.shape[2:])
        return by_token[self.row[:, None], self.tokens].reshape(len(self.row), -1, *x.shape[2:])

    def together(self, x: jax.Array) -> jax.Array:
        """(documents, longest, ...) to (batch, length, ...)."""
        return x[self.document, self.place]


def alone(op: str, case: Case, *, starts: np.ndarray, **arrays: Any) -> Any:
    """The op on each document in a row of its own, as the reference computes it; then all are put back."""
    pieces = Pieces.cut(starts)
    length = starts.shape[1]
    if op == "linear_attention" and arrays.get("decay") is not None and arrays["decay"].ndim == 1:
        arrays["decay"] = jnp.broadcast_to(arrays["decay"], arrays["v"].shape[:3])
    if op == "short_convolution":
        arrays.setdefault("mask", jnp.ones(starts.shape, bool))

    def real(x: jax.Array, otherwise: Any) -> jax.Array:
        mask = np.repeat(pieces.real, x.shape[1] // pieces.real.shape[1], axis=1)
        return jnp.where(mask.reshape(*mask.shape, *(1,) * (x.ndim - 2)), x, otherwise)

    # Padding that changes no state.
    logits = case.options.get("delta_softplus") or case.options.get("transition") == "implicit"
    nothing = {
        "mask": False,
        "delta": -jnp.inf if logits else 0,
        "beta": 0,
        "decay": 0,
        "value_decay": 0,
        "backward_decay": 0,
    }
    nothing |= {"linear_attention": {"k": 0}, "linear_scan": {"x": 0}}.get(op, {})
    given: Arrays = {}
    for name, x in arrays.items():
        if name in TOKENS[op]:
            x = pieces.apart(x)
            given[name] = real(x, nothing[name]) if name in nothing else x
        elif name in STATES:
            given[name] = jnp.where(pieces.first.reshape(-1, *(1,) * (x.ndim - 1)), x[pieces.row], 0)
        elif name == "kernel" and x.ndim == 4:
            given[name] = x[pieces.row]
        else:
            given[name] = x
    found = getattr(pallas_kernels, op)(**given, implementation="reference", **case.options)
    out, *state = found if isinstance(found, tuple) else (found,)
    assert out.shape[1] == pieces.tokens.shape[1]
    assert length == pieces.together(out).shape[1]
    return [pieces.together(out), *(s[pieces.last] for s in state)]


def packed(op: str, case: Case, *, implementation: str, starts: np.ndarray, **arrays: Any) -> Any:
    options = {"starts": jnp.asarray(starts), "implementation": implementation, **case.options}
    return jax.tree.leaves(getattr(pallas_kernels, op)(**arrays, **options))


def run(call: Callable[..., Any], arrays: Arrays) -> tuple[Any, Any]:
    """Outputs, those of padding left out, and all gradients for one random cotangent."""
    mask = arrays.get("mask")
    floats = {n: x for n, x in arrays.items() if is_floating(x)}

    def outputs(floats: Arrays) -> Any:
        out, *state = call(**{**arrays, **floats})
        return [out if mask is None else jnp.where(mask[..., None], out, 0), *state]

    def both(floats: Arrays) -> Any:
        found, pull = jax.vjp(outputs, floats)
        rng = np.random.default_rng(1)
        return found, pull([jnp.asarray(rng.standard_normal(x.shape), x.dtype) for x in found])[0]

    return jax.tree.map(np.asarray, jax.jit(both)(floats))


def in_float64(op: str, name: str, implementation: str | None) -> Any:
    case = find(op, name)[1]
    arrays = arrays_of(case)
    starts = arrays.pop("starts")
    form = alone if implementation is None else functools.partial(packed, implementation=implementation)
    call = functools.partial(form, op, case, starts=starts)
    with jax.enable_x64(True):
        return run(call, {n: jnp.asarray(x) for n, x in arrays.items()})


def is_quick(row: tuple[str, str]) -> bool:
    return row[1] in QUICK[row[0]]


@pytest.mark.parametrize(
    ("op", "name"), tiered([(op, name) for op in TOKENS for name in QUICK[op] + MORE[op]], is_quick)
)
def test_a_row_is_its_documents_alone(op: str, name: str) -> None:
    """By the reference, to which test_ops.py sets the other forms."""
    found, wanted = (in_float64(op, name, implementation) for implementation in ("reference", None))
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    scale = max(np.max(np.abs(x)) for x in jax.tree.leaves(wanted[1]))
    for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(wanted[0])):
        assert np.max(np.abs(a - b), initial=0.0) <= 1e-10 * np.max(np.abs(b), initial=0.0)
    for n, a in found[1].items():
        assert np.max(np.abs(a - wanted[1][n]), initial=0.0) <= 1e-10 * scale, n


@functools.lru_cache(4)
def gradients(op: str, options: frozenset[tuple[str, Any]]) -> Any:
    """The output, and the gradients of the part of it that is ``own``, as XLA's form has them: one program for all
    cases that differ in numbers alone.
    """

    @jax.jit
    def both(floats: Arrays, rest: Arrays, own: jax.Array) -> Any:
        call = functools.partial(getattr(pallas_kernels, op), **rest, **dict(options), implementation="xla")
        out, pull = jax.vjp(lambda floats: jax.tree.leaves(call(**floats))[0], floats)
        return out, pull(jnp.where(own.reshape(*own.shape, *(1,) * (out.ndim - 2)), jnp.cos(out), 0))[0]

    return both


PACKED = [(op, case.name) for op in TOKENS for case in OPS[op].cases if "starts" in arrays_of(case)]


@pytest.mark.parametrize(("op", "name"), tiered(PACKED, is_quick))
def test_nothing_passes_between_documents(op: str, name: str) -> None:
    """What others hold changes no bit of a document's outputs, and these give them a gradient of exactly zero."""
    case = find(op, name)[1]
    arrays = arrays_of(case)
    starts = arrays["starts"]
    pieces = Pieces.cut(starts)
    rng = np.random.default_rng(2)
    number = pieces.document[0, starts.shape[1] // 2]
    own = pieces.document == number
    single = {n: np.asarray(np.nan_to_num(x), np.float32) if is_floating(x) else x for n, x in arrays.items()}
    floats = {n: x for n, x in single.items() if is_floating(x)}
    rest = {n: x for n, x in single.items() if not is_floating(x)}
    moving = [n for n, x in floats.items() if n in TOKENS[op] and x.ndim > 1]

    def mine(x: np.ndarray) -> np.ndarray:
        return np.repeat(own, x.shape[1] // own.shape[1], axis=1)

    other = dict(floats)
    for n in moving:
        keep = mine(floats[n]).reshape(len(own), -1, *(1,) * (floats[n].ndim - 2))
        noise = 100 * rng.standard_normal(floats[n].shape).astype(np.float32)
        # The delta rule is stable for keys and rates like its own.
        moved = np.flip(floats[n], 1)
        others = {
            "delta": np.abs(noise),
            "decay": -np.abs(noise),
            "value_decay": -np.abs(noise),
            "backward_decay": -np.abs(noise),
            "k": moved,
            "beta": moved,
        }
        other[n] = np.where(keep, floats[n], others.get(n, noise))

    both = gradients(op, frozenset(case.options.items()))
    (out, found), (changed, _) = both(floats, rest, own), both(other, rest, own)
    np.testing.assert_array_equal(np.asarray(out)[own], np.asarray(changed)[own])
    for n in moving:
        assert np.isfinite(found[n]).all(), n
        np.testing.assert_array_equal(np.asarray(found[n])[~mine(floats[n])], 0.0, err_msg=n)
        if n not in ("decay", "delta", "value_decay", "backward_decay"):
            assert np.any(np.asarray(found[n])[mine(floats[n])] != 0), n
    for n in STATES:
        if n in found and not pieces.first[number]:
            np.testing.assert_array_equal(found[n], 0.0, err_msg=n)


@pytest.mark.parametrize("op", TOKENS)
def test_sums_of_bfloat16_are_float32(op: str) -> None:
    name = QUICK[op][0]
    case = find(op, name)[1]
    arrays = arrays_of(case)
    starts = arrays.pop("starts")
    exact = ("decay", "delta", "A", *STATES)
    narrow = {n: jnp.asarray(x, jnp.float32 if n in exact else jnp.bfloat16) for n, x in arrays.items()}
    wide = {n: x.astype(jnp.float32) for n, x in narrow.items()}
    call = jax.jit(functools.partial(packed, op, case, implementation="xla", starts=starts))
    for a, b in zip(call(**narrow), call(**wide)):
        assert np.max(np.abs(a.astype(np.float32) - b)) <= 2.0**-8 * np.max(np.abs(b))


@pytest.mark.parametrize("op", TOKENS)
def test_other_starts_are_refused(op: str) -> None:
    case = OPS[op].cases[0]
    arrays = {n: jnp.asarray(x, jnp.float32) for n, x in arrays_of(case).items()}
    length = next(iter(arrays.values())).shape[1]
    for starts in (jnp.zeros((2, length + 1), bool), jnp.zeros((2, length), jnp.int32)):
        with pytest.raises(ValueError, match=rf"{op}: starts must be bool \(batch, length\) = \(2, {length}\)"):
            getattr(pallas_kernels, op)(**arrays, starts=starts, **case.options)


def test_places_of_starts() -> None:
    np.testing.assert_array_equal(documents.at(3, (0, 2), ()), [[True, False, True], [False] * 3])
