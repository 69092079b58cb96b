"""HiSS: recorded outputs and gradients of its authors' model; chunks, padding, pieces, refusals."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from layers import assign, flatten
from layers.state import flatten_state
from tests.compilation import program
from tests.layers.mixer_cases import relative
from tests.references import hiss as recorded
from tests.references import hiss_s4 as recorded_s4
from tests.references.recording import Recording
from tests.tiers import tiered
from zoo.registry import variant
from zoo.weights import export, load

SMALL: dict[str, Any] = {"in_features": 3, "outputs": 2, "ratio": 4, "features": 12, "low_features": 8}
X = np.random.default_rng(0).standard_normal((2, 24, 3)).astype(np.float32)


def test_recorded_outputs_and_gradients(record_property: Any) -> None:
    """And the file comes back bit for bit."""
    recording = Recording(recorded)
    arrays, weights = recording.arrays(), recording.weights()
    model = zoo.create("hiss_nano", in_features=recorded.SHAPE[-1], outputs=recorded.OUTPUTS, **recorded.SIZE)
    model = load(model, weights, naming="authors")
    again = export(model, naming="authors")
    assert again.keys() == weights.keys()
    assert all(np.array_equal(again[name], weight) for name, weight in weights.items())

    @nnx.jit
    def run(model: Any, x: jax.Array) -> Any:
        def loss(model: Any, x: jax.Array) -> Any:
            y = model(x)
            return jnp.sin(y).sum(), y

        return nnx.grad(loss, argnums=(0, 1), has_aux=True)(model, x)

    (of_weights, of_x), y = jax.device_get(run(model, jnp.asarray(recorded.readings())))
    assign(model, flatten_state(of_weights))
    found = {f"gradient/{name}": array for name, array in export(model, naming="authors").items()}
    difference = relative(y, arrays["outputs"])
    assert difference < 1e-4
    assert relative(of_x, arrays["gradient_of_readings"]) < 1e-4
    expected = {name: array for name, array in arrays.items() if name.startswith("gradient/")}
    scale = max(float(np.abs(array).max()) for array in expected.values())
    assert max(float(np.abs(found[name] - array).max()) for name, array in expected.items()) < 1e-4 * scale
    assert variant("hiss_vector").parameters == recording.about["count"]
    about = {"architecture": "hiss", "reference": recording.named(), "kind": "recorded", "mapped": len(weights)}
    record_property("parity", {**about, "difference": difference})


def ours(weights: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """The authors' weights of S4 by our names. Of each pair of conjugates theirs is the other number."""
    conjugate = np.array([1, -1], np.float32)
    found: dict[str, np.ndarray] = {}

    def linear(theirs: str, name: str) -> None:
        kernel = weights[f"{theirs}.weight"]
        found[f"{name}.kernel"], found[f"{name}.bias"] = kernel.reshape(len(kernel), -1).T, weights[f"{theirs}.bias"]

    for theirs, name in (("low_level.embed", "low.embedding"), ("low_level.decoder", "low.out"), ("output", "head")):
        linear(theirs, name)
    levels = {
        "low_level": ("low.blocks", recorded_s4.SIZE["low_depth"]),
        "high_level": ("blocks", recorded_s4.SIZE["depth"]),
    }
    for level, (blocks, depth) in levels.items():
        for i in range(depth):
            mixer, kernel = f"{blocks}.{i}.mixer", f"{level}.s4_layers.{i}.layer.kernel"
            for part, theirs in (("scale", "weight"), ("bias", "bias")):
                found[f"{mixer}_norm.{part}"] = weights[f"{level}.norms.{i}.{theirs}"]
            linear(f"{level}.s4_layers.{i}.output_linear.0", f"{mixer}.out")
            found[f"{mixer}.D"] = weights[f"{level}.s4_layers.{i}.layer.D"][0]
            found[f"{mixer}.log_dt"] = weights[f"{kernel}.inv_dt"][:, 0]
            found[f"{mixer}.log_A_real"], found[f"{mixer}.A_imag"] = (
                weights[f"{kernel}.A_{part}"] for part in ("real", "imag")
            )
            found[f"{mixer}.C"] = weights[f"{kernel}.C"] * conjugate
            found[f"{mixer}.B"], found[f"{mixer}.P"] = (weights[f"{kernel}.{name}"][0] * conjugate for name in "BP")
    return {name: jnp.asarray(array) for name, array in found.items()}


def test_recorded_s4(record_property: Any) -> None:
    """The authors' model of S4 on both levels, and how many parameters their published sizes have."""
    recording = Recording(recorded_s4)
    arrays = recording.arrays()
    weights = {name: recorded_s4.spread(name, array) for name, array in recording.weights().items()}
    model = zoo.create("hiss_ronin", in_features=recorded_s4.SHAPE[-1], outputs=recorded_s4.OUTPUTS, **recorded_s4.SIZE)
    given = ours(weights)
    assert given.keys() == flatten(model, nnx.Param).keys()
    assign(model, given)
    graph, state = nnx.split(model)

    @jax.jit
    def run(x: jax.Array) -> Any:
        def loss(x: jax.Array) -> Any:
            y = nnx.merge(graph, state)(x)
            return jnp.sin(y).sum(), y

        return jax.grad(loss, has_aux=True)(x)

    gradient, y = jax.device_get(run(jnp.asarray(recorded.readings())))
    difference = relative(y, arrays["outputs"])
    assert difference < 1e-4
    assert relative(gradient, arrays["gradient_of_readings"]) < 1e-4
    assert {name: variant(name).parameters for name in recorded_s4.MODELS} == recording.about["counts"]
    about = {"architecture": "hiss", "reference": recording.named(), "kind": "recorded", "mapped": len(weights)}
    record_property("parity", {**about, "difference": difference})


LEVELS: dict[str, dict[str, Any]] = {
    "mamba": {},
    "s4": {"levels": ("s4", "s4")},
    "s4d": {"levels": ("s4d", "mamba")},
    "mean": {"summary": "mean", "pattern": {"0.every": "gru", "1.0": "attention", "1.1": "rg_lru"}},
    "flat": {"carried": True, "depth": 0},
}


@pytest.mark.parametrize("levels", tiered(LEVELS, lambda name: name == "mamba"))
def test_chunks(levels: str) -> None:
    """An output depends on its chunk and on those before, and on no padding; pieces are the whole."""
    model = zoo.create("hiss_nano", **SMALL, **LEVELS[levels])
    run = program(model)
    whole = run(X)
    assert whole.shape == (2, 6, 2)
    other = X.copy()
    other[:, 13] += 1
    changed = np.abs(run(other) - whole).max((0, 2))
    assert changed[:3].max() == 0
    assert changed[3:].min() > 1e-7

    mask = np.arange(24) < np.asarray([[24], [17]])  # of whose last chunk one reading is real
    padded = run(np.where(mask[..., None], X, np.nan), mask)
    np.testing.assert_allclose(padded[0], whole[0], atol=1e-5)
    np.testing.assert_allclose(padded[1, :4], whole[1, :4], atol=1e-5)

    state, extend, found, at = model.init_state(2, max_length=24), program(model, "extend"), [], 0
    for size in (4, 12, 8):
        y, state = extend(X[:, at : at + size], state)
        found, at = [*found, y], at + size
    np.testing.assert_allclose(np.concatenate(found, 1), whole, atol=1e-5)
    if levels == "flat":
        with pytest.raises(ValueError, match="depth=0 has no blocks"):
            model.features(X)
        return
    shapes = jax.eval_shape(lambda x: nnx.clone(model).features(x, (0, -1)), X)
    assert [y.shape for y in shapes] == [(2, 6, 12)] * 2


def test_the_low_level_forgets_each_chunk() -> None:
    """Chunks of one reading leave it nothing to remember: it is a map of readings."""
    model = zoo.create("hiss_nano", **{**SMALL, "ratio": 1})
    rows = X.reshape(-1, 1, 3)
    low = program(model.low)
    np.testing.assert_allclose(low(rows).reshape(2, 24, 12), low(X.reshape(48, 1, 3)).reshape(2, 24, 12))
    apart = zoo.create("hiss_nano", **SMALL)
    whole, half = program(apart.low)(X.reshape(12, 4, 3)), program(apart.low)(X.reshape(12, 4, 3)[::2])
    np.testing.assert_allclose(whole[::2], half, atol=1e-6)


def test_a_flat_model_is_its_blocks_on_all_readings() -> None:
    model = zoo.create("hiss_nano", **SMALL, carried=True, depth=0)

    def flat(model: Any, x: jax.Array) -> jax.Array:
        low = model.low
        x = low.out(low.norm(low.blocks(low.embedding(x))[0]))
        return model.head(model.norm(x))[:, 3::4]

    np.testing.assert_allclose(program(model)(X), nnx.jit(flat)(model, X), atol=1e-6)


def test_depths_of_parameters() -> None:
    model = zoo.create("hiss_nano", **SMALL)
    ids = model.layer_ids()
    order = ("low.embedding.kernel", "low.blocks.0.mixer.D", "low.blocks.1.mixer.D", "blocks.0.mixer.D",
        "blocks.1.mixer.D", "head.kernel")  # fmt: skip
    assert [ids[name] for name in order] == [0, 1, 2, 3, 4, 5]
    assert ids["low.out.kernel"] == 2
    model.reset_head(5)
    assert program(model)(X).shape == (2, 6, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0}, "at least one reading"),
        ({"summary": "first"}, "summary='first'"),
        ({"mixer": "agent"}, "bidirectional only"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zoo.create("hiss_nano", **{**SMALL, **options})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X[:, :10], "10 readings are no whole chunks of ratio=4"),
        (X[..., :2], r"readings of 3 numbers, .* got the shape \(2, 24, 2\)"),
        (X[0], r"got the shape \(24, 3\)"),
    ],
    ids=["part of a chunk", "other readings", "one row"],
)
def test_refused_readings(x: np.ndarray, message: str) -> None:
    model = zoo.create("hiss_nano", **SMALL)
    with pytest.raises(ValueError, match=message):
        model(x)
