"""Narrow parameters under every optimizer, and float16: state and updates in float32, losses scaled so that no gradient
is lost.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from layers import add_lora
from layers.linear import Embed, Linear
from layers.state import flatten
from tests.training import toy
from training import optimizer as optimizers
from training import precision
from training.checkpoint import Checkpoints
from training.step import Skeleton, initial_state, make_step
from training.workdir import open_workdir

NARROW = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
# Each optimizer in bfloat16, one in float16 too: none looks at the type.
EVERY = pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, jnp.bfloat16) for name in sorted(optimizers.OPTIMIZERS)] + [("adamw", jnp.float16)],
    ids=lambda value: getattr(value, "__name__", value),
)


class Matrix(nnx.Module):
    def __init__(self, dtype, size=128):
        self.linear = nnx.Linear(size, size, param_dtype=dtype, rngs=nnx.Rngs(0))


def trained(model, name, gradient, steps, rate=1e-4, **config):
    """Parameters and optimizer state after ``steps`` steps whose gradients are ``gradient(step)`` times fixed eighths,
    exact in every dtype.
    """
    params = flatten(model, nnx.Param)
    optimizer = optimizers.create(model, params, {"name": name, "learning_rate": rate, "weight_decay": 0.1, **config})
    tx = optimizer.transformation(rate)
    params = {n: params[n] for n in optimizer.trainable}

    @jax.jit
    def step(params, state, number):
        gradients = {n: (gradient(number) * eighths(p.shape)).astype(p.dtype) for n, p in params.items()}
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for number in range(steps):
        params, state = step(params, state, number)
    return params, state


def eighths(shape):
    return np.random.default_rng(0).integers(-8, 9, shape) / 8


def widened(model):
    """A copy of ``model`` with its parameters in float32."""
    graphdef, state = nnx.split(model)
    return nnx.merge(
        graphdef, jax.tree.map(lambda a: a.astype(jnp.float32) if jnp.issubdtype(a.dtype, jnp.floating) else a, state)
    )


def moved(after, model):
    return np.concatenate(
        [
            np.ravel(np.asarray(after[n], np.float64) - np.asarray(p, np.float64))
            for n, p in flatten(model, nnx.Param).items()
            if n in after
        ]
    )


@functools.cache
def both(name, dtype):
    """A model in ``dtype`` and the same in float32, each with what :func:`trained` gives."""
    return [(model, *trained(model, name, lambda step: 0.125, 40)) for model in (Matrix(dtype), widened(Matrix(dtype)))]


@EVERY
def test_a_master_copy_moves_as_parameters_in_float32_do(name, dtype):
    (_, after, state), (_, right, right_state) = both(name, dtype)
    for n in after:
        assert after[n].dtype == dtype
        np.testing.assert_allclose(state["master"][n], right[n], rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(after[n], state["master"][n].astype(dtype))
    shapes = lambda tree: [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]  # noqa: E731
    assert shapes(state["base"]) == shapes(right_state), "the state is that of parameters in float32"


@EVERY
def test_stochastic_rounding_is_right_on_average(name, dtype):
    """Steps far below the spacing of the numbers: rounding to the nearest would move nothing."""
    (narrow, *_), (wide, right, _) = both(name, dtype)
    after, state = trained(narrow, name, lambda step: 0.125, 40, rounding="stochastic")
    direction = moved(right, wide)
    share = moved(after, narrow) @ direction / (direction @ direction)
    assert share == pytest.approx(1, abs=0.15)
    assert all(leaf.dtype != dtype for leaf in jax.tree.leaves(state))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 2.1 * 128 * 129, "no copy of the parameters"


def test_second_moments_forget_in_bfloat16():
    """Gradients ten times smaller after step 200: in bfloat16 the moment would stand still at a multiple of its right
    value.
    """
    _, state = trained(Matrix(jnp.bfloat16), "adamw", lambda step: jnp.where(step < 200, 1.0, 0.125), 2200)
    nu = state["base"][0][0].nu["linear.bias"]
    right = (1 - 0.999**200) * 0.999**2000 + 0.125**2 * (1 - 0.999**2000)
    np.testing.assert_allclose(nu, right * eighths(128) ** 2, rtol=1e-3)


def test_adapters_in_bfloat16_move_as_they_should():
    model = add_lora(Matrix(jnp.bfloat16), rank=2, patterns=("linear",))
    wide = widened(model)
    (after, state), (right, _) = (trained(m, "adamw", lambda step: 0.125, 50) for m in (model, wide))
    assert set(state["master"]) == set(after) == {"linear.lora_a", "linear.lora_b"}
    assert np.linalg.norm(moved(after, model)) == pytest.approx(np.linalg.norm(moved(right, wide)), rel=0.05)


def test_an_unknown_rounding_is_refused():
    with pytest.raises(ValueError, match=r"unknown optimizer\.rounding 'masters': did you mean 'master'"):
        trained(Matrix(jnp.bfloat16), "adamw", lambda step: 1.0, 1, rounding="masters")


@NARROW
def test_rounding_stays_within_the_neighbors(dtype):
    x = jnp.linspace(-3, 3, 4001, dtype=jnp.float32)
    keys = jax.random.split(jax.random.key(0), 256)
    draws = jax.jit(jax.vmap(lambda key: precision.round_stochastically(x, dtype, key)))(keys)
    near = x.astype(dtype)
    spacing = jnp.max(
        jnp.stack([jnp.abs(jnp.nextafter(near, jnp.asarray(end, dtype)) - near) for end in (-jnp.inf, jnp.inf)]), 0
    ).astype(jnp.float32)
    assert draws.dtype == dtype
    assert np.all(np.abs(draws.astype(jnp.float32) - x) <= spacing)
    np.testing.assert_allclose(np.mean(draws.astype(jnp.float32) - x, 0) / np.maximum(spacing, 1e-9), 0, atol=0.17)


def test_runs_from_before_the_rounding_was_a_field_go_on(tmp_path):
    old = toy.config()
    open_workdir(tmp_path, old)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    open_workdir(tmp_path, toy.config(optimizer__rounding="master"))
    with pytest.raises(ValueError, match=r"optimizer.rounding: \"master\" there, \"stochastic\" here"):
        open_workdir(tmp_path, toy.config(optimizer__rounding="stochastic"))


VOCABULARY = 16


class Words(nnx.Module):
    """Logits of the next token from this one alone."""

    def __init__(self, dtype=None, param_dtype=jnp.float32):
        common = {"dtype": dtype, "param_dtype": param_dtype, "rngs": nnx.Rngs(0)}
        self.embedding, self.head = Embed(VOCABULARY, 8, **common), Linear(8, VOCABULARY, **common)

    def __call__(self, tokens):
        return self.head(self.embedding(tokens))


class NextToken:
    """The mean cross entropy of a token."""

    def __init__(self, factor=1.0):
        self.factor = factor

    def loss(self, model, batch, rngs):
        logits = model(batch["tokens"]).astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"]) * self.factor
        return jnp.mean(losses), {"loss": (jnp.sum(losses), jnp.float32(losses.size))}


def stepper(model, task=None, accumulate=1, sticky=True, **config):
    optimizer = optimizers.create(model, flatten(model, nnx.Param), {"name": "sgd", "learning_rate": 1.0, **config})
    step = make_step(
        Skeleton(model), task or NextToken(), optimizer, lambda step: jnp.float32(1.0), seed=0, accumulate=accumulate,
        ema=0.0, aux_losses={}, sticky=sticky
    )  # fmt: skip
    return jax.jit(step), initial_state(model, optimizer, 0.0)


def words(tokens, accumulate=1, seed=0):
    rng = np.random.default_rng(seed)
    shape = (accumulate, tokens // accumulate // 1024, 1024)
    return {name: rng.choice(VOCABULARY, shape, p=_frequencies()).astype(np.int32) for name in ("tokens", "targets")}


def _frequencies():
    share = 1 / np.arange(1, VOCABULARY + 1)
    return share / share.sum()


@pytest.mark.parametrize(
    ("dtype", "tokens", "accumulate"),
    [
        pytest.param(jnp.bfloat16, 262_144, 1, id="bfloat16-262144"),
        pytest.param(jnp.float16, 65_536, 4, id="float16-65536-4"),
        pytest.param(jnp.float16, 262_144, 1, id="float16-262144", marks=pytest.mark.full),
        pytest.param(jnp.bfloat16, 65_536, 4, id="bfloat16-65536-4", marks=pytest.mark.full),
    ],
)
def test_gradients_over_many_tokens_are_those_of_float32(dtype, tokens, accumulate):
    batch = words(tokens, accumulate)
    (narrow, state), (wide, right_state) = (stepper(Words(d), accumulate=accumulate) for d in (dtype, None))
    (after, report), (right, _) = narrow(state, batch), wide(right_state, batch)
    assert report["kept"]
    for name, start in state["params"].items():
        ours, theirs = after["params"][name] - start, right["params"][name] - start
        assert float(jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(theirs)) < 0.01, name


def test_an_overflow_halves_the_scale_and_halts_nothing():
    step, state = stepper(Words(jnp.float16), NextToken(1e4))
    batch, scales = words(1024), []
    for _ in range(16):
        before = state
        state, report = step(state, batch)
        scales.append(float(report["loss_scale"]))
        assert bool(report["overflow"]) != bool(report["kept"])
        if report["kept"]:
            break
        assert jax.tree.all(jax.tree.map(np.array_equal, before["params"], state["params"]))
    assert report["kept"]
    assert len(scales) > 1
    assert scales == [precision.FIRST_SCALE / 2**i for i in range(len(scales))]
    assert not state["halted"]
    assert int(state["step"]) == len(scales)


def test_a_loss_that_is_not_finite_is_no_fault_of_the_scale():
    step, state = stepper(Words(jnp.float16), NextToken(np.nan))
    after, report = step(state, words(1024))
    assert not report["overflow"]
    assert after["halted"]
    assert float(after["loss_scale"]["value"]) == precision.FIRST_SCALE


def test_the_scale_doubles_after_long_without_an_overflow():
    scale = precision.first_loss_scale()
    for _ in range(2000):
        scale = precision.next_loss_scale(scale, jnp.asarray(False))
    assert float(scale["value"]) == 2 * precision.FIRST_SCALE
    assert int(scale["steps"]) == 0


def test_only_float16_is_scaled_and_checkpoints_keep_the_scale(tmp_path):
    assert "loss_scale" not in stepper(Words(jnp.bfloat16))[1]
    assert "loss_scale" in stepper(Words(param_dtype=jnp.float16))[1]
    _, state = stepper(Words(jnp.float16, jnp.bfloat16), name="adamw")
    state["loss_scale"] = precision.next_loss_scale(state["loss_scale"], jnp.asarray(True))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, 2)
    checkpoints.wait()
    restored, number = checkpoints.restore(state)
    checkpoints.close()
    assert number == 2
    assert restored.keys() == state.keys()
    assert float(restored["loss_scale"]["value"]) < precision.FIRST_SCALE
    assert jax.tree.all(jax.tree.map(np.array_equal, restored, state))
