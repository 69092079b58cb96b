"""Several orders of reading: when they are drawn, what is done with the outputs, and what is refused."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import layers
from layers import Mixer, Tokens
from layers.multi_path import random_numbers
from tests.layers.mixer_cases import relative

X = np.random.default_rng(0).standard_normal((2, 9, 4)).astype(np.float32)


class Sums(Mixer):
    """Sums of all tokens up to each."""

    supports_causal = True

    def __init__(self, features: int, *, causal: bool = False, rngs: nnx.Rngs):
        self.causal = causal

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        return x.cumsum(1)


def mixer(**options: Any) -> Any:
    made = layers.MultiPath(4, inner=Sums, rngs=nnx.Rngs(0), **options)
    made.eval()
    return made


def test_each_path_is_read_in_its_order_and_brought_back() -> None:
    """Beside sums in the orders of a block's numbers, weighted by a softmax of the means."""
    made = mixer(index=3)
    order = np.argsort(np.asarray(random_numbers(jax.random.key(3), 9)))
    outputs = [X.cumsum(1), X[:, ::-1].cumsum(1)[:, ::-1], X[:, order].cumsum(1)[:, np.argsort(order)]]
    scores = np.concatenate([output.mean(1) for output in outputs], -1) @ np.asarray(made.gate.kernel[...])
    gates = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    want = sum(gates[:, i, None, None] * output for i, output in enumerate(outputs))
    assert relative(made(X), want) < 1e-5
    paths = mixer(paths=("reverse", "forward"), gate=False)
    assert relative(paths(X), (outputs[0] + outputs[1]) / 2) < 1e-5


def test_the_shuffle_is_fixed_in_evaluation_and_drawn_in_training() -> None:
    made = mixer()
    assert relative(made(X), made(X)) == 0
    assert relative(mixer(index=1)(X), made(X)) > 1e-3
    made.train()
    assert relative(made(X), made(X)) > 1e-3
    plain = mixer(paths=("forward", "reverse"))
    plain.train()
    assert relative(plain(X), plain(X)) == 0


@pytest.mark.parametrize(("paths", "found"), [(("forward", "sideways"), "'sideways'"), ((), "'none'")])
def test_unknown_paths_are_refused(paths: tuple[str, ...], found: str) -> None:
    with pytest.raises(ValueError, match=f"paths are some of forward, reverse, shuffle, got {found}"):
        mixer(paths=paths)
