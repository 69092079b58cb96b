"""What modules sow is collected on request only, through scan and remat too."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layers import AuxLoss, Block, Diagnostic, Module, Stack, Tokens, collecting
from layers.mixer import Mixer


class Reporting(Mixer):
    """Adds a number, and reports the mean square of its input, and the input."""

    def __init__(self, number: float):
        self.number = nnx.Param(jnp.float32(number))

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        self.sow(AuxLoss, "balance", jnp.mean(x**2) * self.number[...])
        self.sow(Diagnostic, "map", x)
        return x * self.number[...]


def make_stack(**options: bool) -> Stack:
    return Stack([Block({"mixer": Reporting(i + 1.0)}, features=4, rngs=nnx.Rngs(i)) for i in range(3)], **options)


X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32) + 1


def test_nothing_is_kept_unless_collected() -> None:
    module = Reporting(1.0)
    assert not module.sowing(AuxLoss, "balance")
    assert not module.sow(AuxLoss, "balance", 1.0)
    with collecting(Diagnostic, name="map") as sown:
        assert module.sowing(Diagnostic, "map")
        assert not module.sowing(Diagnostic, "other")
        assert not module.sowing(AuxLoss, "balance")
        module(X)
    assert list(sown.named(module)) == ["map"]


def collected(stack: Stack, x: jax.Array) -> dict[str, jax.Array]:
    graphdef, state = nnx.split(stack)

    @jax.jit
    def run(state: nnx.State, x: jax.Array) -> dict[str, jax.Array]:
        stack = nnx.merge(graphdef, state)
        with collecting(AuxLoss) as sown:
            stack(x)
        return sown.named(stack)

    return run(state, x)


@pytest.mark.parametrize("options", [{"scan": True}, {"remat": True}, {"scan": True, "remat": True}], ids=str)
def test_collecting_through_transformations(options: dict[str, bool]) -> None:
    want = collected(make_stack(), X)
    assert list(want) == [f"{i}.mixer.balance" for i in range(3)]
    got = collected(make_stack(**options), X)
    assert sorted(got) == sorted(want)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"scan": True}, {"remat": True}, {"scan": True, "remat": True}], ids=str)
def test_a_sown_loss_has_gradients(options: dict[str, bool]) -> None:
    graphdef, params, rest = nnx.split(make_stack(**options), nnx.Param, ...)

    @jax.jit
    @jax.grad
    def gradient(params: nnx.State) -> jax.Array:
        stack = nnx.merge(graphdef, params, rest)
        with collecting(AuxLoss) as sown:
            stack(X)
        return sum(sown.named(stack).values())

    for i in range(3):
        assert float(jnp.abs(gradient(params)[str(i)]["mixer"]["number"][...])) > 1e-4


def test_a_name_sown_twice_holds_both() -> None:
    class Twice(Module):
        def __init__(self) -> None:
            self.inner = Reporting(2.0)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.inner(self.inner(x))

    module = Twice()
    with collecting(AuxLoss) as sown:
        module(X)
    first, second = sown.named(module)["inner.balance"]
    np.testing.assert_allclose(second, 4 * first, rtol=1e-5)
