"""The lines of docs/conventions.md that JAX, Flax and Optax alone can measure, and that each line has its test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pallas_kernels
from layers.norm import BatchNorm
from layers.position import Rotary

HOME = Path(__file__).resolve().parents[2]
PAGE = HOME / "docs" / "conventions.md"


def test_every_line_is_measured() -> None:
    """Each test of the two files is named on the page, and each name on the page is a test."""
    files = [Path(__file__), Path(__file__).with_name("test_conventions_reference.py")]
    tests = {
        node.name.removeprefix("test_")
        for file in files
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    named = re.findall(r"^\| .*\| `(\w+)` \|$", PAGE.read_text(), re.MULTILINE)
    assert sorted(named) == sorted(tests - {"every_line_is_measured"})


def test_rotary_pairs() -> None:
    x = jnp.arange(1.0, 5.0).reshape(1, 1, 1, 4)
    halves = Rotary()(x, jnp.asarray([[1]]))
    neighbors = Rotary(interleaved=True)(x, jnp.asarray([[1]]))
    cos, sin = np.cos(1), np.sin(1)
    np.testing.assert_allclose(halves[0, 0, 0, ::2], [cos - 3 * sin, 3 * cos + sin], rtol=1e-6)
    np.testing.assert_allclose(neighbors[0, 0, 0, :2], [cos - 2 * sin, 2 * cos + sin], rtol=1e-6)


def test_gelu_of_jax() -> None:
    x = np.linspace(-4, 4, 81, dtype=np.float32)
    np.testing.assert_array_equal(jax.nn.gelu(x), jax.nn.gelu(x, approximate=True))
    assert 1e-4 < np.abs(jax.nn.gelu(x) - jax.nn.gelu(x, approximate=False)).max() < 1e-3


def test_epsilon_of_flax() -> None:
    made = [norm(4, rngs=nnx.Rngs(0)).epsilon for norm in (nnx.LayerNorm, nnx.RMSNorm, nnx.BatchNorm)]
    assert made == [1e-6, 1e-6, 1e-5]


def test_momentum_of_batch_norm() -> None:
    """The part of the old statistics that is kept."""
    assert nnx.BatchNorm(4, rngs=nnx.Rngs(0)).momentum == 0.99
    x = jnp.asarray([[0.0], [2.0]])
    ours = BatchNorm(1, rngs=nnx.Rngs(0))
    ours.train()
    ours(x)
    np.testing.assert_allclose(ours.mean[...], [0.1], rtol=1e-6)
    np.testing.assert_allclose(ours.var[...], [0.9 * 1 + 0.1 * 1], rtol=1e-6)  # of two numbers, not of one less


def test_empty_rows_of_a_mask() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((1, 2, 1, 4)), jnp.float32) for _ in "qkv")
    mask = jnp.asarray([[[[True, False], [False, False]]]])
    ours = pallas_kernels.attention(q, k, v, mask=mask)
    jaxs = jax.nn.dot_product_attention(q, k, v, mask=mask)
    np.testing.assert_array_equal(ours[0, 1], 0)
    np.testing.assert_allclose(jaxs[0, 1], v[0].mean(0), rtol=1e-5)


def test_window() -> None:
    """As data (left, right): the query's own position is neither."""
    n, left = 12, 3
    values = jnp.broadcast_to(jnp.eye(n)[None, :, None], (1, n, 1, n))
    zeros = jnp.zeros((1, n, 1, 8))
    weights = pallas_kernels.attention(zeros, zeros, values, causal=True, window=(left, None))[0, :, 0]
    assert np.flatnonzero(weights[-1]).tolist() == [8, 9, 10, 11]


def test_padding_of_strided_convolutions() -> None:
    assert jax.lax.padtype_to_pads((224,), (3,), (2,), "SAME") == [(0, 1)]
    assert jax.lax.padtype_to_pads((224,), (3,), (1,), "SAME") == [(1, 1)]


def test_smoothed_labels() -> None:
    np.testing.assert_allclose(optax.smooth_labels(jnp.eye(4)[0], 0.1), [0.925, 0.025, 0.025, 0.025], rtol=1e-6)


def test_weight_decay_of_optax() -> None:
    """Multiplied by the learning rate, and 1e-4 unless given."""
    optimizer, params = optax.adamw(0.5), {"w": jnp.ones(1)}
    updates, _ = optimizer.update({"w": jnp.zeros(1)}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], [-0.5 * 1e-4], rtol=1e-6)


def test_norm_at_zero() -> None:
    assert np.isnan(jax.grad(jnp.linalg.norm)(jnp.zeros(2))).all()


def test_indices_out_of_range() -> None:
    table = jnp.arange(3.0)
    assert table[jnp.asarray(5)] == 2
    assert jnp.isnan(jnp.take(table, 5))


def losses_over_devices(vma: bool) -> list[float]:
    """In a process of several devices: the gradient of the mean over devices of w * x, taken inside ``shard_map``."""
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def inside(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.grad(lambda w: jnp.mean(w * x))(w)[None]

    call = jax.shard_map(inside, mesh=mesh, in_specs=(spec(), spec("data")), out_specs=spec("data"), check_vma=vma)
    if vma:  # the gradient of what is replicated is replicated
        call = jax.shard_map(lambda w, x: inside(w, x)[0], mesh=mesh, in_specs=(spec(), spec("data")), out_specs=spec())
    return np.ravel(jax.jit(call)(jnp.float32(1), jnp.arange(4.0))).tolist()


def test_gradient_of_a_mean_over_devices(eight_devices: pytest.FixtureRequest) -> None:
    call = "tests.docs.test_conventions:losses_over_devices"
    assert eight_devices(call, False) == [0, 1, 2, 3]  # each device's own
    assert eight_devices(call, True) == [6]  # the sum over devices; the mean's gradient is 1.5
