"""One step as a function of (state, batch): accumulation, averages, auxiliary losses, freezing, randomness, steps that
are not finite.
"""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from layers.state import flatten
from tests.training import toy
from training import optimizer as optimizers
from training.input import train_batch
from training.step import Skeleton, initial_state, make_evaluation, make_step, weights

TASK = toy.ToyTask()


def setup(model, accumulate=1, ema=0.0, aux=None, sticky=True, seed=0, task=TASK, **optimizer):
    chosen = optimizers.create(model, flatten(model, nnx.Param), {"name": "sgd", "learning_rate": 0.1, **optimizer})
    step = make_step(
        Skeleton(model), task, chosen, lambda step: jnp.float32(0.1), seed=seed, accumulate=accumulate, ema=ema,
        aux_losses=aux or {}, sticky=sticky
    )  # fmt: skip
    return jax.jit(step), initial_state(model, chosen, ema)


def batch(step=0, accumulate=1, task=TASK, size=8):
    return train_batch(task.examples("train"), step, size, 0, accumulate)


def close(a, b, tolerance=1e-6):
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=tolerance, atol=tolerance, err_msg=name)


class ExactTask(toy.ToyTask):
    """The toy without its own randomness, so that microbatches differ in nothing but their rows."""

    def loss(self, model, batch, rngs):
        pairs = toy._pairs(model(batch["input"]), batch["label"], batch["input"][:, 0] > -0.3)
        return pairs["loss"][0] / pairs["loss"][1], pairs


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_gives_the_gradient_of_the_whole_batch(accumulate):
    # The weights in ExactTask leave microbatches with unequal counts, which a plain mean would get wrong.
    task, model = ExactTask(), toy.ToyModel(norm=False)
    (one, state), (many, _) = setup(model, task=task), setup(model, accumulate, task=task)
    (a, report), (b, report_too) = one(state, batch()), many(state, batch(accumulate=accumulate))
    close(a["params"], b["params"])
    np.testing.assert_allclose(report["pairs"]["loss"], report_too["pairs"]["loss"], rtol=1e-6)


def test_statistics_pass_through_every_microbatch():
    model = toy.ToyModel()
    step, state = setup(model, 2, freeze=("first.*",))
    moved, _ = step(state, batch(accumulate=2))
    mean = state["statistics"]["norm.mean"]
    for rows in batch(accumulate=2)["input"]:
        hidden = model.first(rows * 1.0)
        mean = 0.99 * mean + 0.01 * hidden.mean(0)
    np.testing.assert_allclose(moved["statistics"]["norm.mean"], mean, atol=2e-3)
    assert float(jnp.abs(moved["statistics"]["norm.mean"]).max()) > 0


def test_frozen_parameters_stay_bit_for_bit_and_the_rest_moves():
    step, state = setup(toy.ToyModel(), freeze=("first.*",))
    moved, _ = step(state, batch())
    for name, value in state["params"].items():
        assert np.array_equal(value, moved["params"][name]) == name.startswith("first")


def test_the_statistics_of_frozen_modules_stand_still():
    step, state = setup(toy.ToyModel(), freeze=("norm.*",))
    moved, _ = step(state, batch())
    for name, value in state["statistics"].items():
        np.testing.assert_array_equal(moved["statistics"][name], value)
    assert not np.array_equal(state["params"]["first.kernel"], moved["params"]["first.kernel"])


def test_the_average_follows_parameters_and_statistics():
    step, state = setup(toy.ToyModel(), ema=0.5)
    moved, _ = step(state, batch())
    for name, value in {**moved["params"], **moved["statistics"]}.items():
        before = {**state["params"], **state["statistics"]}[name]
        np.testing.assert_allclose(
            moved["ema"][name], 0.1 * before + 0.9 * value, rtol=1e-5, atol=1e-6
        )  # 1/10 at first, 0.5 later
    assert weights(moved, averaged=True)["head.kernel"] is not moved["params"]["head.kernel"]
    assert weights(moved, averaged=False)["head.kernel"] is moved["params"]["head.kernel"]


def test_auxiliary_losses_are_weighted_and_reported():
    model = toy.ToyModel(aux=True, norm=False)
    step, state = setup(model, aux={"activity": 0.0})
    weighted, _ = setup(model, aux={"activity": 0.5})
    (plain, report), (moved, _) = step(state, batch()), weighted(state, batch())
    x = batch()["input"][0]
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0)
    x = x * (1 + 0.01 * jax.random.normal(jax.random.fold_in(key, zlib.crc32(b"task"))))

    def activity(kernel):
        return jnp.mean(jnp.square(nnx.gelu(x @ kernel + state["params"]["first.bias"])))

    value, slope = jax.value_and_grad(activity)(state["params"]["first.kernel"])
    np.testing.assert_allclose(report["pairs"]["activity"][0] / report["pairs"]["activity"][1], value, rtol=1e-5)
    np.testing.assert_allclose(
        plain["params"]["first.kernel"] - moved["params"]["first.kernel"], 0.1 * 0.5 * slope, atol=1e-6
    )


@pytest.mark.parametrize(
    ("aux", "message"),
    [
        ({}, "reports the auxiliary loss 'activity', which has no weight"),
        ({"activity": 1.0, "activty": 1.0}, "did you mean 'activity'"),
    ],
)
def test_auxiliary_losses_without_a_weight_or_a_source_are_refused(aux, message):
    step, state = setup(toy.ToyModel(aux=True), aux=aux)
    with pytest.raises(ValueError, match=message):
        step(state, batch())


def test_randomness_depends_on_seed_step_and_microbatch():
    model = toy.ToyModel(dropout=0.5)
    step, state = setup(model)
    other, _ = setup(model, seed=1)
    first, again = step(state, batch())[0], step(state, batch())[0]
    close(first["params"], again["params"], 0)
    later = step({**state, "step": jnp.int32(1)}, batch())[0]
    reseeded = other(state, batch())[0]
    for changed in (later, reseeded):
        assert not np.array_equal(first["params"]["head.kernel"], changed["params"]["head.kernel"])
    same_rows = {name: np.concatenate([rows, rows]) for name, rows in batch().items()}
    two, _ = setup(model, 2)
    twice = two(state, same_rows)[0]  # the same rows twice: equal to once, but for the dropout of the second
    assert not np.allclose(first["params"]["head.kernel"], twice["params"]["head.kernel"])


def test_streams_do_not_depend_on_what_was_drawn_when_the_model_was_made():
    used = toy.ToyModel(dropout=0.5)
    used.train()
    used(jnp.ones((4, toy.FEATURES)))
    (step, state), (other, _) = setup(toy.ToyModel(dropout=0.5)), setup(used)
    close(step(state, batch())[0]["params"], other(state, batch())[0]["params"], 0)


@pytest.mark.parametrize("sticky", [True, False])
def test_a_step_that_is_not_finite_leaves_the_state_as_it_was(sticky):
    step, state = setup(toy.ToyModel(), ema=0.5, sticky=sticky, name="adamw")
    state, _ = step(state, batch())
    bad = batch(1)
    bad["input"][0, 0, 0] = np.nan
    moved, report = step(state, bad)
    assert not report["kept"]
    for part in ("params", "statistics", "optimizer", "ema"):
        assert jax.tree.all(jax.tree.map(np.array_equal, moved[part], state[part])), part
    after, report = step(moved, batch(2))
    assert bool(report["kept"]) == (not sticky)
    assert int(after["step"]) == (1 if sticky else 3)


def test_gradients_that_overflow_alone_are_caught_and_named():
    class Cliff(toy.ToyTask):
        def loss(self, model, batch, rngs):
            logits = model(batch["input"])
            pairs = toy._pairs(logits, batch["label"], jnp.ones(len(batch["label"])))
            return jnp.sqrt(jnp.abs(model.head.bias[0] * 0)) + pairs["loss"][0] / pairs["loss"][1], pairs

    task, model = Cliff(), toy.ToyModel()
    step, state = setup(model, task=task)
    _, report = step(state, batch(task=task))
    assert np.isfinite(report["pairs"]["loss"][0])
    assert not report["kept"]
    names = sorted(state["params"])
    assert [n for n, s in zip(names, report["squares"]) if not np.isfinite(s)] == ["head.bias"]


def test_evaluation_ignores_rows_of_weight_zero():
    model = toy.ToyModel(dropout=0.5)
    evaluate = jax.jit(make_evaluation(Skeleton(model), TASK))
    arrays = {**flatten(model, nnx.Param), **flatten(model, nnx.BatchStat)}
    rows = {
        "input": TASK.examples("test").inputs[:6],
        "label": TASK.examples("test").labels[:6],
        "weight": np.ones(6, np.float32),
    }
    padded = {n: np.concatenate([v, v[:2] * 0 if n == "weight" else v[:2]]) for n, v in rows.items()}
    ((pairs, weight, _), _), ((pairs_padded, weight_padded, _), _) = (evaluate(arrays, x) for x in (rows, padded))
    assert weight.sum() == weight_padded.sum() == 6
    np.testing.assert_allclose(pairs["loss"], pairs_padded["loss"], rtol=1e-6)
    logits = optax.softmax_cross_entropy_with_integer_labels  # the model in evaluation mode, called directly
    model.eval()
    np.testing.assert_allclose(pairs["loss"][0], logits(model(rows["input"]), rows["label"]).sum(), rtol=1e-5)


def test_the_first_state_is_one_program_whatever_the_shapes():
    """Not one for each shape, of which a pyramid has a hundred: a second run of a config makes them all again."""
    model = toy.ToyModel(width=23)
    chosen = optimizers.create(model, flatten(model, nnx.Param), {"name": "adamw", "learning_rate": 0.1})
    initial_state(toy.ToyModel(width=21), chosen, 0.0)  # what does not depend on shapes
    made = []

    def listen(name, seconds, **more):
        made.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        state = initial_state(model, chosen, 0.0)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert made.count("/jax/core/compile/backend_compile_duration") == 1
    expected = chosen.transformation(0.0).init({name: state["params"][name] for name in chosen.trainable})
    jax.tree.map(np.testing.assert_array_equal, state["optimizer"], expected)
