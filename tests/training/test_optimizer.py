"""Optimizers by name: against optax itself, and what patterns, decay, factors and freezing do to which parameter."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import zoo
from layers.state import flatten
from tests.training.toy import ToyModel
from training import optimizer as optimizers

MODEL = nnx.eval_shape(ToyModel)
RNG = np.random.default_rng(0)
PARAMS = {n: RNG.normal(0, 0.3, p.shape).astype(np.float32) for n, p in flatten(MODEL, nnx.Param).items()}
GRADIENTS = {n: np.sin(np.arange(p.size, dtype=np.float32).reshape(p.shape) + len(n)) for n, p in PARAMS.items()}


def make(**config):
    return optimizers.create(MODEL, PARAMS, {"name": "adamw", "learning_rate": 0.1, **config})


def updates(optimizer, steps=3, rate=0.1):
    tx = optimizer.transformation(rate)
    params = {n: PARAMS[n] for n in optimizer.trainable}
    state = tx.init(params)
    for _ in range(steps):
        update, state = tx.update({n: GRADIENTS[n] for n in params}, state, params)
        params = optax.apply_updates(params, update)
    return params, state


def by_optax(tx, steps=3):
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        update, state = tx.update(GRADIENTS, state, params)
        params = optax.apply_updates(params, update)
    return params


MASK = {n: n == "first.kernel" for n in PARAMS}  # the toy's head.kernel is spared by the model itself
PLAIN = {
    "adamw": optax.adamw(0.1, weight_decay=0.3, mask=MASK),
    "adam": optax.chain(optax.add_decayed_weights(0.3, MASK), optax.adam(0.1)),
    "sgd": optax.chain(optax.add_decayed_weights(0.3, MASK), optax.sgd(0.1)),
    "lion": optax.lion(0.1, weight_decay=0.3, mask=MASK),
    "lamb": optax.lamb(0.1, weight_decay=0.3, mask=MASK),
    "adafactor": optax.adafactor(
        0.1, weight_decay_rate=0.1 * 0.3, weight_decay_mask=MASK
    ),  # of optax the share of a step
}


def test_every_optimizer_is_covered():
    assert set(PLAIN) | {"muon"} == set(optimizers.OPTIMIZERS)


@pytest.mark.parametrize("name", PLAIN)
def test_equals_optax(name):
    ours, plain = updates(make(name=name, weight_decay=0.3))[0], by_optax(PLAIN[name])
    for n in PARAMS:
        np.testing.assert_allclose(ours[n], plain[n], rtol=2e-5, atol=1e-6, err_msg=n)


def test_muon_is_for_matrices_and_adam_for_the_rest():
    ours = updates(make(name="muon", options={"adam": ("head.*",)}), steps=1)[0]
    muon = by_optax(optax.contrib.muon(0.1), steps=1)
    adam = by_optax(optax.adam(0.1, nesterov=True), steps=1)
    np.testing.assert_allclose(ours["first.kernel"], muon["first.kernel"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours["head.kernel"], adam["head.kernel"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours["head.bias"], adam["head.bias"], rtol=1e-4, atol=1e-5)
    decayed = updates(make(name="muon", weight_decay=0.3), steps=1)[0]
    np.testing.assert_allclose(
        decayed["first.kernel"], muon["first.kernel"] - 0.1 * 0.3 * PARAMS["first.kernel"], rtol=1e-4, atol=1e-5
    )


def test_decay_spares_vectors_patterns_and_what_the_model_names():
    assert make(weight_decay=0.1).decayed == {"first.kernel"}
    assert make(weight_decay=0.1, no_decay=("first.*",)).decayed == frozenset()


EVERY = pytest.mark.parametrize("name", sorted(optimizers.OPTIMIZERS))
RATES = (0.1, 0.0, 0.03, 0.2)
# L2 penalties that statistics of the gradient divide by their own size, and steps as long as the weights: a rate of
# their own.
NORMALIZED = ("adam", "lamb")


def decayed_alone(optimizer, rates):
    """The parameters after a step at each rate, without any gradient, by name; and those before the last step."""
    params = {n: PARAMS[n] + 0.1 for n in optimizer.trainable}
    state, zeros, before = optimizer.transformation(0.0).init(params), jax.tree.map(jnp.zeros_like, params), params
    for rate in rates:
        update, state = optimizer.transformation(rate).update(zeros, state, params)
        before, params = params, optax.apply_updates(params, update)
    return params, before


@EVERY
def test_nothing_moves_at_a_rate_of_zero(name):
    after, _ = decayed_alone(make(name=name, weight_decay=0.05), [0.0] * 3)
    for n in PARAMS:
        np.testing.assert_array_equal(after[n], PARAMS[n] + 0.1, err_msg=n)


@EVERY
def test_decay_follows_the_schedule_the_factors_and_the_mask(name):
    """A step takes rate times factor times decay of a weight; of an optimizer that normalizes decay too, a part in
    proportion to rate times factor.
    """
    optimizer = make(
        name=name, weight_decay=0.3, layer_decay=0.5, multipliers={"first.*": 3.0}, no_decay=("head.bias",)
    )
    assert optimizer.decayed == {"first.kernel"}
    factor = 0.5**2 * 3.0
    after, _ = decayed_alone(optimizer, RATES if name not in NORMALIZED else RATES[:1])
    for n in PARAMS:
        if n != "first.kernel":
            np.testing.assert_array_equal(after[n], PARAMS[n] + 0.1, err_msg=n)
    start = PARAMS["first.kernel"] + 0.1
    if name in NORMALIZED:
        full, _ = decayed_alone(make(name=name, weight_decay=0.3), RATES[:1])
        np.testing.assert_allclose(
            after["first.kernel"] - start, factor * (full["first.kernel"] - start), rtol=1e-4, atol=1e-6
        )
    else:
        np.testing.assert_allclose(
            after["first.kernel"], start * np.prod([1 - rate * factor * 0.3 for rate in RATES]), rtol=1e-5
        )


def test_muon_is_for_linear_layers_inside_blocks():
    model = zoo.create("mamba_nano", features=16, depth=2, vocab_size=11)
    params = flatten(model, nnx.Param)
    optimizer = optimizers.create(model, params, {"name": "muon", "learning_rate": 0.1})
    assert {name.split(".", 2)[-1] for name in optimizer.matrices} == {
        f"mixer.{part}.kernel" for part in ("in_proj", "x_proj", "dt_proj", "out_proj")
    }
    state = jax.eval_shape(optimizer.transformation(0.1).init, params)
    paths = [path for path, _ in jax.tree.leaves_with_path(state) if jax.tree_util.DictKey("muon") in path]
    assert {path[-1].key for path in paths if isinstance(path[-1], jax.tree_util.DictKey)} == optimizer.matrices


def test_factors_multiply_the_update():
    plain, scaled = updates(make(), 1)[0], updates(make(multipliers={"head.*": 10.0}), 1)[0]
    for n in PARAMS:
        factor = 10.0 if n.startswith("head") else 1.0
        np.testing.assert_allclose(scaled[n] - PARAMS[n], factor * (plain[n] - PARAMS[n]), rtol=1e-4, atol=1e-6)


def test_layer_decay_counts_from_the_last_layer_and_multiplies_with_patterns():
    assert make(layer_decay=0.5).factors == {"first.kernel": 0.25, "norm.scale": 0.5, "norm.bias": 0.5}
    assert make(layer_decay=0.5, multipliers=(("first.*", 2.0),)).factors["first.kernel"] == 0.5


def test_frozen_parameters_have_no_state():
    frozen = make(freeze=("first.*", "norm.*"))
    assert frozen.trainable == ("head.bias", "head.kernel")
    shapes = {leaf.shape for leaf in jax.tree.leaves(updates(frozen)[1])}
    assert PARAMS["first.kernel"].shape not in shapes


def test_patterns_free_again_in_their_order():
    assert make(freeze=("*", "!head.*")).trainable == ("head.bias", "head.kernel")
    assert make(freeze=("*", "!head.*", "head.bias")).trainable == ("head.kernel",)
    assert make(freeze=("head.bias", "!head.*")).trainable == make().trainable


def test_clipping_bounds_the_global_norm():
    norm = float(optax.tree.norm(GRADIENTS))
    moved = updates(make(name="sgd", clip_norm=norm / 4), 1)[0]
    for n in PARAMS:
        np.testing.assert_allclose(moved[n] - PARAMS[n], -0.1 * GRADIENTS[n] / 4, rtol=1e-3, atol=1e-6)


class Plain(nnx.Module):
    def __init__(self):
        self.kernel = nnx.Param(jnp.ones((2, 2)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "adamv"}, "unknown optimizer 'adamv': did you mean 'adam"),
        ({"options": {"b11": 0.9}}, "unknown option of optimizer adamw 'b11': did you mean 'b1'"),
        ({"options": {"weight_decay": 0.9}}, "unknown option"),
        ({"freeze": ("hea.*",)}, "optimizer.freeze: no parameter matches 'hea"),
        ({"freeze": ("*", "!hea.*")}, "optimizer.freeze: no parameter matches 'hea"),
        ({"freeze": ("*",)}, "leaves no parameter to train"),
        ({"multipliers": {"nothing": 2.0}}, "optimizer.multipliers: no parameter matches"),
    ],
)
def test_refusals(config, message):
    with pytest.raises(ValueError, match=message):
        make(**config)


def test_layer_decay_without_layers_is_refused_with_the_reason():
    model = Plain()
    with pytest.raises(ValueError, match=r"Plain does not say .* \(no layer_ids\(\)\)"):
        optimizers.create(model, flatten(model, nnx.Param), {"name": "adamw", "learning_rate": 0.1, "layer_decay": 0.5})
