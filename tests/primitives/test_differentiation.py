"""Forward mode: a function with a gradient of its own has all derivatives, and so has every op."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import pallas_kernels
from pallas_kernels.dispatch import OPS, interpreting
from primitives.differentiation import differentiable
from tests.pallas_kernels.test_ops import arrays_of, find, is_floating
from tests.tiers import tiered

RNG = np.random.default_rng(0)
X, W = RNG.standard_normal((3, 4)).astype(np.float32), RNG.standard_normal((4, 4)).astype(np.float32)
USED = []


@differentiable(1)
def power(count: int, x: jax.Array, weights: dict[str, Any], scale: jax.Array) -> dict[str, jax.Array]:
    """A function of a static number, an array, a tree with an integer array in it, and an integer."""
    for _ in range(count):
        x = jnp.tanh(x @ weights["w"])
    return {"y": x, "sum": x.sum() * scale}


def _forward(count: int, x: jax.Array, weights: dict[str, Any], scale: jax.Array) -> tuple[Any, Any]:
    return power.function(count, x, weights, scale), (x, weights, scale, jnp.float32(1))


def _backward(count: int, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    USED.append(count)
    x, weights, scale, one = residuals
    _, pull = jax.vjp(lambda x, w: power.function(count, x, {"w": w}, scale), x, weights["w"])
    d_x, d_w = pull(cotangents)
    return one * d_x, {"w": d_w, "rows": None}, None


power.define(_forward, _backward)

Function = Callable[..., Any]


def call(function: Function, x: jax.Array, w: jax.Array) -> dict[str, jax.Array]:
    return function(2, x, {"w": w, "rows": jnp.arange(3)}, jnp.int32(2))


def total(function: Function) -> Function:
    def loss(x: jax.Array, w: jax.Array) -> jax.Array:
        out = call(function, x, w)
        return jnp.sum(out["y"] ** 2) + out["sum"]

    return loss


def mapped(function: Function) -> Function:
    return lambda x, w: jnp.sum(jax.vmap(total(function), (0, None))(jnp.stack([x, 2 * x]), w))


def scanned(function: Function) -> Function:
    return lambda x, w: jnp.sum(
        jax.lax.scan(lambda carry, _: (call(function, carry, w)["y"], None), x, None, length=3)[0]
    )


def rematerialized(function: Function) -> Function:
    return jax.checkpoint(total(function))


def on_devices(function: Function, check: bool) -> Function:
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("data")
    run = jax.shard_map(
        lambda x, w: call(function, x, w)["y"],
        mesh=mesh,
        in_specs=(rows, PartitionSpec()),
        out_specs=rows,
        check_vma=check,
    )
    return lambda x, w: jnp.sum(run(x, w) ** 2)


FORMS = {
    "plain": total,
    "mapped": mapped,
    "scanned": scanned,
    "remat": rematerialized,
    "devices": functools.partial(on_devices, check=False),
    "typed devices": functools.partial(on_devices, check=True),
}
DERIVATIVES: dict[str, Callable[[Function], Function]] = {
    "jvp": lambda f: lambda x, w: jax.jvp(f, (x, w), (w[:3], w)),
    "linearize": lambda f: lambda x, w: jax.vmap(jax.linearize(f, x, w)[1])(jnp.stack([x, 2 * x]), jnp.stack([w, w])),
    "jvp of gradient": lambda f: lambda x, w: jax.jvp(jax.grad(f, (0, 1)), (x, w), (w[:3], w)),
    "gradient of jvp": lambda f: jax.grad(lambda x, w: jax.jvp(f, (x, w), (w[:3], w))[1], (0, 1)),
    "jvp of jvp": lambda f: lambda x, w: jax.jvp(lambda x, w: jax.jvp(f, (x, w), (w[:3], w))[1], (x, w), (x, w)),
    "hessian": lambda f: jax.hessian(f),
}


@pytest.mark.parametrize("form", FORMS)
def test_derivatives_are_those_of_the_operations(form: str) -> None:
    own, plain = (FORMS[form](function) for function in (power, power.function))
    names = [name for name in DERIVATIVES if form in ("plain", "scanned") or name in ("jvp", "jvp of gradient")]

    @jax.jit
    def run(x: jax.Array, w: jax.Array) -> Any:
        gradients = [jax.grad(f, (0, 1))(x, w) for f in (own, plain)]
        assert USED  # the gradient is the one that was given
        return [
            (gradient, *(DERIVATIVES[name](f)(x, w) for name in names))
            for f, gradient in zip((own, plain), gradients, strict=True)
        ]

    USED.clear()
    got, want = run(X, W)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), got, want)


def test_per_example_gradients() -> None:
    own, plain = (jax.vmap(jax.grad(scanned(function), (0, 1)), (0, None)) for function in (power, power.function))
    xs = np.stack([X, 2 * X])
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), jax.jit(own)(xs, W), jax.jit(plain)(xs, W)
    )


def test_a_kernel_refuses_and_says_what_to_do() -> None:
    kernel = differentiable(kernel=True)(lambda x: x * x)
    kernel.define(lambda x: (x * x, x), lambda x, d: (2 * d * x,))
    np.testing.assert_allclose(jax.grad(lambda x: kernel(x).sum())(X), 2 * X)
    for derivative in (
        lambda: jax.jvp(kernel, (X,), (X,)),
        lambda: jax.jit(lambda x: jax.jvp(kernel, (x,), (x,)))(X),
        lambda: jax.hessian(lambda x: kernel(x).sum())(X),
    ):
        with pytest.raises(NotImplementedError, match=r'use\("xla"\)'):
            derivative()


def test_kernels_step_aside() -> None:
    found = arrays_of(find("linear_attention", "plain")[1])
    op, arrays = pallas_kernels.linear_attention, {name: jnp.asarray(found[name], jnp.float32) for name in "qkv"}

    def run(v: jax.Array) -> Any:
        return jax.jit(lambda v: jax.jvp(lambda v: op(**{**arrays, "v": v}), (v,), (v,)))(v)

    with interpreting():
        with pytest.raises(NotImplementedError, match=r'use\("xla"\)'):
            run(arrays["v"])
        with pallas_kernels.dispatch.use("xla"):
            out, change = run(arrays["v"])
    np.testing.assert_allclose(change, out, rtol=1e-5, atol=1e-5)  # it is linear in v


# Of ops small inputs for each function with a gradient of its own; of one that is not here, the first case.
CASES = {
    "attention": "score long_window",
    "linear_attention": "value",
    "delta_rule": "more_steps_than_chunk",
    "selective_scan": "everything",
}
# Ops that are made of other ops or of JAX's operations.
COMPOSED = {"neighborhood_attention", "short_convolution", "toeplitz_product"}
ROWS = [
    (op.name, name)
    for op in OPS.values()
    if op.name not in COMPOSED
    for name in (CASES[op.name].split() if op.name in CASES else [op.cases[0].name])
]


def prepared(op_name: str, case_name: str) -> tuple[Function, dict[str, jax.Array]]:
    """The op's finite floating outputs as one vector, of its floating arrays."""
    _, case = find(op_name, case_name)
    arrays = {n: jnp.asarray(x, jnp.float64 if is_floating(x) else x.dtype) for n, x in arrays_of(case).items()}
    rest = {n: x for n, x in arrays.items() if not is_floating(x)}

    def vector(floats: dict[str, jax.Array]) -> jax.Array:
        out = jax.tree.leaves(getattr(pallas_kernels, op_name)(**floats, **rest, **case.options))
        return jnp.concatenate([jnp.where(jnp.isfinite(x), x, 0).ravel() for x in out if is_floating(x)])

    return vector, {n: x for n, x in arrays.items() if is_floating(x)}


FIRST = dict(reversed(ROWS))


@pytest.mark.parametrize(("op_name", "case_name"), tiered(ROWS, lambda row: FIRST[row[0]] == row[1]))
def test_ops_along_a_direction(op_name: str, case_name: str) -> None:
    with jax.enable_x64(True):
        vector, at = prepared(op_name, case_name)
        rng = np.random.default_rng(1)
        way = {name: jnp.asarray(rng.standard_normal(x.shape) * np.nanmean(np.abs(x))) for name, x in at.items()}
        # The gradient of a sum of squares: what it changes by is a product with the Hessian.
        gradient = jax.grad(lambda floats: jnp.sum(vector(floats) ** 2))

        @jax.jit
        def run(at: dict[str, jax.Array]) -> Any:
            out, change = jax.jvp(vector, (at,), (way,))
            return 2 * jnp.sum(out * change), *jax.jvp(gradient, (at,), (way,))

        change, slope, turned = run(at)
        inner = sum(float(jnp.vdot(slope[name], way[name])) for name in at)
        np.testing.assert_allclose(change, inner, rtol=1e-9)
        step = 1e-5
        ahead, behind = (run({name: x + sign * step * way[name] for name, x in at.items()})[1] for sign in (1, -1))
        for name in at:
            wanted = (ahead[name] - behind[name]) / (2 * step)
            assert jnp.abs(turned[name] - wanted).max() < 1e-5 * jnp.abs(wanted).max(), name


@pytest.mark.full
@pytest.mark.parametrize("op_name", sorted(OPS.keys() - COMPOSED - {"attention"}))
def test_ops_have_jacobians_and_hessians(op_name: str) -> None:
    with jax.enable_x64(True):
        vector, at = prepared(op_name, FIRST[op_name])
        name = next(iter(at))
        row = jnp.asarray(at[name].reshape(-1)[:2])

        def few(two: jax.Array) -> jax.Array:
            """The op as a function of two numbers."""
            return vector({**at, name: at[name].reshape(-1).at[:2].set(two).reshape(at[name].shape)})

        def loss(two: jax.Array) -> jax.Array:
            return jnp.sum(few(two) ** 2)

        @jax.jit
        def run(two: jax.Array) -> Any:
            derivatives = jax.grad(loss)(two), jax.hessian(loss)(two), jax.jacrev(jax.grad(loss))(two)
            return 2 * few(two) @ jax.jacfwd(few)(two), *derivatives

        forward, backward, hessian, reverse = run(row)
        np.testing.assert_allclose(forward, backward, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(hessian, reverse, rtol=1e-9, atol=1e-12)
        assert float(jnp.abs(hessian).max()) > 0
