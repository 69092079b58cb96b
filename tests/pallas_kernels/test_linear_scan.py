"""The elementwise linear recurrence: its closed form, cutting, work of second derivatives, memory, refusals."""

from __future__ import annotations

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import documents, linear_scan
from primitives.operations import count
from primitives.platform import platform
from tests.compilation import OPTIMIZED
from tests.pallas_kernels.test_ops import evaluate, find

LENGTH = 11
RNG = np.random.default_rng(0)
X, DECAY = RNG.standard_normal((2, LENGTH, 3)), -np.abs(RNG.standard_normal((2, LENGTH, 3)))
START = RNG.standard_normal((2, 3))
STARTS = documents.at(LENGTH, (0, 4, 5), (7,))
compiled = jax.jit(linear_scan, static_argnames=("reverse", "return_state", "implementation"))


@pytest.mark.parametrize("reverse", [False, True], ids=["forth", "back"])
def test_closed_form_and_cuts(reverse: bool) -> None:
    """h_t is a sum over the tokens of its document up to it; pieces that hand the state on give the same."""
    seen = np.where(reverse, np.tri(LENGTH).T, np.tri(LENGTH))
    document = np.cumsum(STARTS, axis=1)
    wanted = np.zeros_like(X)
    for b, t, s in np.ndindex(2, LENGTH, LENGTH):
        if seen[t, s] and document[b, t] == document[b, s]:
            between = slice(t, s) if reverse else slice(s + 1, t + 1)
            wanted[b, t] += np.exp(DECAY[b, between].sum(0)) * X[b, s]
    outside = document == (document[:, -1:] if reverse else 0)
    for b, t in zip(*np.nonzero(outside)):
        wanted[b, t] += np.exp(DECAY[b, t:].sum(0) if reverse else DECAY[b, : t + 1].sum(0)) * START[b]
    last = np.where(STARTS[:, :1], 0, wanted[:, 0]) if reverse else wanted[:, -1]
    with jax.enable_x64(True):
        arrays = (jnp.asarray(X), jnp.asarray(DECAY), jnp.asarray(STARTS))
        for cuts in ((0, LENGTH), (0, 4, 9, LENGTH)):
            pieces, state = [], jnp.asarray(START)
            spans = list(itertools.pairwise(cuts))
            for begin, end in reversed(spans) if reverse else spans:
                x, decay, starts = (a[:, begin:end] for a in arrays)
                form = {"initial_state": state, "starts": starts, "reverse": reverse, "return_state": True}
                piece, state = compiled(x, decay, **form)
                pieces.append(piece)
            np.testing.assert_allclose(
                jnp.concatenate(pieces[::-1] if reverse else pieces, 1), wanted, rtol=1e-12, atol=1e-14
            )
            np.testing.assert_allclose(state, last, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["reverse", "packed", "packed_sum", "abrupt"])
def test_form_of_other_platforms(name: str) -> None:
    """The associative scan, traced as for a GPU: outputs and gradients in float64."""
    op, case = find("linear_scan", name)
    wanted, wanted_gradients = evaluate(op, "reference", case, np.float64)
    with platform("gpu"):
        found, gradients = evaluate(op, "xla", case, np.float64)
    for a, b in zip([*found, *gradients.values()], [*wanted, *wanted_gradients.values()], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_gradients_are_linear_in_length() -> None:
    """Operations of the gradient, and of its own: differentiated as it stands, the loop that reads tokens in place
    takes a pass over the whole sequence for each token.
    """

    def loss(x: jax.Array, decay: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(linear_scan(x, decay)))

    def second(x: jax.Array, decay: jax.Array) -> jax.Array:
        return jnp.sum(jnp.cos(jax.grad(loss)(x, decay)))

    for function in (loss, second):
        short, long = (
            count(jax.grad(function, (0, 1)), *[jax.ShapeDtypeStruct((1, length, 4), jnp.float32)] * 2).flops
            for length in (32, 128)
        )
        assert long <= 4.1 * short


def test_memory_of_the_gradient() -> None:
    """Some arrays of the tokens' size: what autodiff keeps of a loop in place is as many as there are tokens."""

    def loss(x: jax.Array, decay: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(linear_scan(x, decay)))

    shapes = [jax.ShapeDtypeStruct((1, 256, 64), jnp.float32)] * 2
    memory = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    assert memory < 5 * 256 * 64 * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": (2, 3)}, "x must be (batch, length >= 1, channels); got (2, 3)"),
        ({"decay": (2, LENGTH)}, f"decay must have shape (2, {LENGTH}, 3); got (2, {LENGTH})"),
        ({"initial_state": (3,)}, "initial_state must have shape (2, 3); got (3,)"),
    ],
)
def test_misfits(change: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        linear_scan(**{"x": jnp.asarray(X), **{name: jnp.zeros(shape) for name, shape in change.items()}})


def test_no_step_of_the_gradient_copies_the_sequence() -> None:
    """Where a loop reads and writes one array, XLA may copy all of it in every step: quadratic in length."""

    def loss(x: jax.Array, decay: jax.Array) -> jax.Array:
        return jnp.sum(linear_scan(x, decay) ** 2)

    arrays = [jnp.zeros((1, 96, 5))] * 2
    program = jax.jit(jax.grad(loss, (0, 1)), compiler_options=OPTIMIZED).lower(*arrays).compile().as_text()
    bodies = set(re.findall(r"body=%([\w.]+)", program))
    assert bodies
    for body in bodies:
        text = re.search(rf"^%{re.escape(body)} .*?^}}", program, re.MULTILINE | re.DOTALL)
        assert text is not None
        assert not re.search(r"f32\[1,96,5\]\S* copy\(", text[0])
