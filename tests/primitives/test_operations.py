"""The walker against programs counted by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels import attention
from primitives.operations import Operations, count, exponent, trips


def array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_matmul_and_bytes() -> None:
    assert count(jnp.matmul, array(3, 5), array(5, 7)) == Operations(
        flops=2 * 3 * 5 * 7, matmul_flops=2 * 3 * 5 * 7, input_bytes=4 * (15 + 35), output_bytes=4 * 21
    )


def test_batched_matmul_of_elementwise() -> None:
    def f(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.sum(jnp.exp(jnp.einsum("bij,bjk->bik", x, y)))

    operations = count(f, array(2, 3, 5), array(2, 5, 7))
    matmul = 2 * 2 * 3 * 5 * 7
    assert (operations.matmul_flops, operations.flops) == (matmul, matmul + 42 + 42)


def test_scan_multiplies_its_body() -> None:
    def f(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=11)[0]

    assert count(f, array(3, 5), array(5, 5)).flops == 11 * (2 * 3 * 5 * 5 + 15)
    assert count(jax.checkpoint(jax.jit(f)), array(3, 5), array(5, 5)).flops == 11 * (2 * 3 * 5 * 5 + 15)


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (4, 1), (8, 2)])
def test_convolution(groups: int, stride: int) -> None:
    def f(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )

    outputs = 2 * (12 // stride) ** 2 * 16
    assert count(f, array(2, 12, 12, 8), array(3, 3, 8 // groups, 16)).matmul_flops == 2 * outputs * 9 * 8 // groups


def test_gradient_of_a_strided_convolution_costs_twice_the_convolution() -> None:
    def f(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, w, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    args = array(2, 12, 12, 8), array(2, 2, 8, 16)
    forward = count(f, *args).matmul_flops
    assert count(jax.grad(lambda x, w: f(x, w).sum(), (0, 1)), *args).matmul_flops == pytest.approx(
        3 * forward, rel=0.01
    )


def test_vit_attention() -> None:
    """ViT-B/16 at 224: logits and sums, 2 * 197 * 197 * 64 * 12 each, and a few operations per logit beside them."""
    q = array(1, 197, 12, 64)
    operations = count(attention, q, q, q)
    assert operations.matmul_flops == 4 * 197 * 197 * 64 * 12
    assert 4 * 197 * 197 * 12 < operations.flops - operations.matmul_flops < 8 * 197 * 197 * 12


def test_dearest_branch() -> None:
    def f(i: jax.Array, x: jax.Array) -> jax.Array:
        return lax.switch(i, [lambda x: x, lambda x: x @ x, lambda x: x + 1], x)

    assert count(f, jax.ShapeDtypeStruct((), jnp.int32), array(6, 6)).matmul_flops == 2 * 6**3


def test_while_needs_a_declaration() -> None:
    def f(x: jax.Array) -> jax.Array:
        return lax.while_loop(lambda x: x.sum() < 100, lambda x: x @ x, x)

    with pytest.raises(ValueError, match=r"while loop.*trips"):
        count(f, array(6, 6))

    def declared(x: jax.Array) -> jax.Array:
        with trips(9):
            return f(x)

    assert count(declared, array(6, 6)).matmul_flops == 9 * 2 * 6**3
    assert count(lambda x: lax.fori_loop(0, 7, lambda _, x: x @ x, x), array(6, 6)).matmul_flops == 7 * 2 * 6**3


def test_sort_and_top_k_are_comparisons() -> None:
    assert count(lambda x: jnp.sort(x, axis=0), array(1024, 3)).comparisons == 3 * 1024 * 10
    assert count(lambda x: lax.top_k(x, 16)[1], array(3, 1000)).comparisons == 3 * 1000 * 4


def test_reductions_cumulative_sums_and_fft() -> None:
    assert count(lambda x: x.max(axis=1), array(4, 9)).flops == 36
    assert count(lambda x: lax.cumsum(x, axis=1), array(4, 9)).flops == 36
    assert count(jnp.fft.fft, jax.ShapeDtypeStruct((3, 256), jnp.complex64)).flops == 3 * 5 * 256 * 8
    assert count(lambda x: lax.fft(x, "RFFT", (256,)), array(3, 256)).flops == 3 * 5 * 128 * 8


def test_gather_and_scatter_move() -> None:
    index = jax.ShapeDtypeStruct((7,), jnp.int32)
    assert count(lambda x, i: x.at[i].get(mode="clip"), array(100, 5), index).moved >= 35
    scatter = count(lambda x, i, u: x.at[i].add(u, mode="drop"), array(100, 5), index, array(7, 5))
    assert 35 <= scatter.flops < 100
    assert 35 <= scatter.moved < 100


def test_custom_derivatives_are_walked() -> None:
    @jax.custom_vjp
    def f(x: jax.Array) -> jax.Array:
        return x @ x

    f.defvjp(lambda x: (f(x), x), lambda x, g: (g @ x @ x @ x,))
    g = jax.custom_jvp(lambda x: x @ x)
    g.defjvps(lambda t, _, x: t @ x)
    assert count(f, array(6, 6)).matmul_flops == count(g, array(6, 6)).matmul_flops == 2 * 6**3
    assert count(jax.grad(lambda x: f(x).sum()), array(6, 6)).matmul_flops == 4 * 2 * 6**3


def test_pallas_call_by_its_estimate() -> None:
    def kernel(x: jax.Array, out: jax.Array) -> None:
        out[...] = x[...] * 2

    def f(x: jax.Array, estimate: pl.CostEstimate | None) -> jax.Array:
        return pl.pallas_call(kernel, out_shape=x, cost_estimate=estimate, interpret=True)(x)

    estimate = pl.CostEstimate(flops=1000, transcendentals=23, bytes_accessed=5)
    assert count(lambda x: f(x, estimate), array(8, 8)).flops == 1023
    with pytest.raises(ValueError, match="CostEstimate"):
        count(lambda x: f(x, None), array(8, 8))


def test_unknown_primitive_is_refused() -> None:
    with pytest.raises(ValueError, match="no rule for the primitive 'svd'"):
        count(lambda x: jnp.linalg.svd(x, compute_uv=False), array(8, 8))


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 2), ({"causal": True}, 2), ({"window": (64, 64)}, 1), ({"window": (64, None), "causal": True}, 1)],
)
def test_exponent_of_attention(options: dict, expected: int) -> None:
    def forward(length: int) -> tuple:
        q = array(1, length, 2, 16)
        return lambda q, k, v: attention(q, k, v, **options), q, q, q

    def gradient(length: int) -> tuple:
        f, *args = forward(length)
        return jax.grad(lambda q, k, v: f(q, k, v).sum(), (0, 1, 2)), *args

    assert exponent(forward) == pytest.approx(expected, abs=0.02)
    assert exponent(gradient) == pytest.approx(expected, abs=0.02)


def test_exponent_needs_two_lengths() -> None:
    with pytest.raises(ValueError, match="two different lengths"):
        exponent(lambda n: (jnp.sin, array(n)), lengths=(8, 8))
