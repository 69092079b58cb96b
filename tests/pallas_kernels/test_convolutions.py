"""The convolutions' forms, of which dispatch takes one by size: each against the reference, in every mode.

test_ops.py tests the form that is chosen, which for nearly all cases is that of shifted additions.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import depthwise_convolution, dispatch, short_convolution
from pallas_kernels.depthwise_convolution import xla
from pallas_kernels.depthwise_convolution.forms import FORMS
from pallas_kernels.depthwise_convolution.geometry import Geometry
from pallas_kernels.dispatch import OPS, Case, Op
from tests.pallas_kernels import test_ops
from tests.tiers import tiered

OPTIONS: dict[str, Any] = {"strides": (2, 1), "dilation": (1, 2), "padding": ((0, 2), (3, 1))}
QUICK = ("strides_apart", "dilated_strided", "each", "everything")
# What is special about these is that they are large, or nothing.
ORDINARY = ("plain", "bias", "strided", "one_tap", "several_blocks", "many_taps")
# The short convolution's own work is the same for all forms.
ROWS = [
    (op, case, form)
    for op in (OPS["depthwise_convolution"], OPS["short_convolution"])
    for case in op.cases
    for form in FORMS
    if form != "taps" and (case.name in QUICK or (op.name == "depthwise_convolution" and case.name not in ORDINARY))
]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A form that is taken whatever the size."""
    return force(request.param, monkeypatch)


def force(form: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(xla, "choose", lambda geometry: form)
    return form


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def in_float64(function: Any, *arrays: Any) -> Any:
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(function)(*jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), arrays)))


def in_float32(function: Any, *arrays: Any) -> Any:
    return jax.tree.map(np.asarray, jax.jit(function)(*jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), arrays)))


def assert_near(found: Any, truth: Any, tolerance: float = 1e-5) -> None:
    """Relative to the largest value of each array."""
    assert jax.tree.structure(found) == jax.tree.structure(truth)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(truth)):
        assert np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(b))


def is_quick(row: tuple[Op, Case, str]) -> bool:
    return row[1].name in QUICK


@pytest.mark.parametrize(
    ("op", "case", "form"), tiered(ROWS, is_quick), ids=lambda value: getattr(value, "name", value)
)
def test_agrees_with_reference(op: Op, case: Case, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and all gradients, by the measure of test_ops.py."""
    force(form, monkeypatch)
    test_ops.compare(op, case, test_ops.evaluate(op, "xla", case, np.float32, traced=form), 1.0)


@functools.cache
def directions() -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Input, kernel and bias, and tangents of them."""
    shapes = ((2, 9, 8, 3), (3, 2, 1, 3), (3,))
    return tuple(normal(i, *shape) for i, shape in enumerate(shapes)), tuple(
        normal(10 + i, *shape) for i, shape in enumerate(shapes)
    )


def derivatives(implementation: str, options: dict[str, Any], arrays: Any, tangents: Any) -> Any:
    """Along one direction: that of the output, that of the gradient, and the gradient of a derivative."""

    def call(*arrays: jax.Array) -> jax.Array:
        return depthwise_convolution(*arrays, implementation=implementation, **options)

    def loss(*arrays: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(call(*arrays)))

    of_gradient = jax.jvp(jax.grad(loss, (0, 1, 2)), arrays, tangents)[1]
    return (
        jax.jvp(call, arrays, tangents)[1],
        of_gradient,
        jax.grad(lambda *a: jax.jvp(loss, a, tangents)[1], (0, 1, 2))(*arrays),
    )


@functools.cache
def true_derivatives() -> Any:
    return in_float64(functools.partial(derivatives, "reference", OPTIONS), *directions())


@pytest.mark.usefixtures("form")
def test_forward_mode_and_second_derivatives() -> None:
    assert_near(in_float32(functools.partial(derivatives, "xla", OPTIONS), *directions()), true_derivatives())


def mapped(implementation: str, x: Any, kernel: Any) -> Any:
    """Outputs and gradients where input, kernel or both are mapped, each example's kernel its own in the last."""

    def both(x: jax.Array, kernel: jax.Array) -> Any:
        y, pull = jax.vjp(functools.partial(depthwise_convolution, implementation=implementation, **OPTIONS), x, kernel)
        return y, pull(jnp.cos(y))

    return [
        jax.vmap(both, (1, None))(x, kernel[0]),
        jax.vmap(both, (None, 0))(x[:, 0], kernel),
        jax.vmap(both, (1, 0))(x, kernel),
        jax.vmap(both, (0, None))(x, jnp.stack([kernel[0]] * x.shape[1])),
    ]


@functools.cache
def true_mapped() -> Any:
    return in_float64(functools.partial(mapped, "reference"), normal(0, 2, 3, 7, 8, 2), normal(1, 3, 3, 2, 1, 2))


@pytest.mark.usefixtures("form")
def test_mapped() -> None:
    assert_near(
        in_float32(functools.partial(mapped, "xla"), normal(0, 2, 3, 7, 8, 2), normal(1, 3, 3, 2, 1, 2)), true_mapped()
    )


@pytest.mark.usefixtures("form")
def test_bfloat16_is_rounded_once() -> None:
    """Sums are float32, over positions too: 2048 terms of about 1 would end at 256 in bfloat16."""
    x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in (1 + 0.1 * normal(0, 2, 32, 32, 2), normal(1, 5, 5, 1, 2)))

    def both(implementation: str, x: jax.Array, kernel: jax.Array) -> Any:
        y, pull = jax.vjp(functools.partial(depthwise_convolution, implementation=implementation), x, kernel)
        return y, pull(jnp.ones_like(y))

    found = jax.jit(functools.partial(both, "xla"))(x, kernel)
    truth = in_float64(functools.partial(both, "reference"), *(np.asarray(a, np.float64) for a in (x, kernel)))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(truth)):
        assert a.dtype == jnp.bfloat16
        a = np.asarray(a, np.float64)
        # Half a unit in the last of 8 bits, and what float32 loses on the way.
        assert np.all(np.abs(a - b) <= 2.0**-8 * np.abs(b) + 1e-5 * np.max(np.abs(b)))


def test_transforms_err_in_proportion_to_the_map() -> None:
    """One value of 1e6 in a map, or a common offset, costs that map's accuracy, and none of the other maps'."""
    size, taps = 20, 7
    plain, kernel = normal(0, 2, size, size, 2), normal(1, taps, taps, 1, 2)
    call = DepthwiseForm("fft")
    huge, moved = plain.copy(), plain.copy()
    huge[0, 11, 4, 1] = 1e6
    moved[0, ..., 1] += 1e4
    reach = np.abs(kernel[..., 0, :]).sum((0, 1))
    calm = in_float32(call, plain, kernel)
    for x in (plain, huge, moved):
        found = in_float32(call, x, kernel)
        truth = in_float64(functools.partial(depthwise_convolution, implementation="reference"), x, kernel)
        bound = 1e-6 * np.abs(x).max((1, 2)) * reach
        assert np.all(np.abs(found - truth).max((1, 2)) <= bound)
        np.testing.assert_array_equal(found[0, ..., 0], calm[0, ..., 0])
        np.testing.assert_array_equal(found[1], calm[1])


class DepthwiseForm:
    """The op in one form."""

    def __init__(self, form: str):
        self.form = form

    def __call__(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        with pytest.MonkeyPatch.context() as patch:
            force(self.form, patch)
            return depthwise_convolution(x, kernel)


@pytest.mark.parametrize("form", FORMS)
def test_nan_stays_in_its_map(form: str) -> None:
    """It spreads over a map where there are transforms, and else to what sees it alone."""
    x = normal(0, 2, 9, 9, 2)
    x[0, 1, 2, 1] = np.nan
    lost = np.isnan(in_float32(DepthwiseForm(form), x, normal(1, 3, 3, 1, 2)))
    expected = np.zeros(lost.shape, bool)
    expected[0, slice(None) if form == "fft" else slice(0, 3), slice(None) if form == "fft" else slice(1, 4), 1] = True
    np.testing.assert_array_equal(lost, expected)


@pytest.mark.usefixtures("form")
def test_a_sequence_may_be_cut_anywhere() -> None:
    """The state that a causal convolution returns continues it."""
    x, kernel, bias = normal(0, 2, 12, 3), normal(1, 4, 1, 3), normal(2, 3)

    def pieces(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        found, state = [], None
        for piece in jnp.split(x, [1, 3, 8], axis=1):
            y, state = short_convolution(piece, kernel, bias, state=state, return_state=True)
            found.append(y)
        return jnp.concatenate(found, 1)

    whole = in_float64(functools.partial(short_convolution, implementation="reference"), x, kernel, bias)
    assert_near(in_float32(pieces, x, kernel, bias), whole)


def square(size: int, side: int = 28) -> Geometry:
    return Geometry((side, side), (size, size), (1, 1), (1, 1), ((size // 2, size // 2),) * 2)


def test_the_form_goes_by_platform_and_taps() -> None:
    assert [xla.choose(square(size)) for size in (3, 5, 7, 9, 13, 31)] == ["taps", "taps", "taps", "fft", "fft", "fft"]
    with dispatch.platform("gpu"):
        assert {xla.choose(square(size)) for size in (3, 31)} == {"library"}
    with dispatch.platform("tpu"):
        assert [xla.choose(square(size)) for size in (3, 31)] == ["taps", "library"]


X, KERNEL = np.zeros((2, 5, 5, 3), np.float32), np.zeros((3, 3, 1, 3), np.float32)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X[0], KERNEL), {}, r"x must be \(batch, rows, columns, channels\)"),
        ((X, KERNEL[..., :2]), {}, r"kernel must be \(kernel_rows, kernel_columns, 1, 3\)"),
        ((X, KERNEL[:, :0]), {}, "kernel must be"),
        ((X, KERNEL, KERNEL[0, 0, 0, :2]), {}, r"bias must be \(3,\)"),
        ((X, KERNEL), {"padding": ((-1, 0), (0, 0))}, "padding can't be negative"),
        ((X, KERNEL), {"strides": 0}, "strides must be at least 1"),
        ((X, KERNEL), {"dilation": (1, 0)}, "dilation must be at least 1"),
        (
            (X, KERNEL),
            {"dilation": 3, "padding": ((0, 0), (0, 0))},
            r"reaches over \(7, 7\) and does not fit into x of \(5, 5\)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_named(arguments: tuple[np.ndarray, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        depthwise_convolution(*map(jnp.asarray, arguments), **options)
