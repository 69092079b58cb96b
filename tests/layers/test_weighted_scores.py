"""Attention whose weights are not a plain softmax, against its equation in float64: values and slopes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers import Tokens, flatten
from layers.initializers import truncated_normal
from tests.layers.mixer_cases import relative
from tests.references import authors_layers
from tests.references import weighted_scores as recorded
from tests.tiers import tiered

FEATURES, HEADS, LENGTH = 12, 2, 37
WIDTH = FEATURES // HEADS
ROWS = (LENGTH, 23)  # real tokens
Weights = dict[str, np.ndarray]


def softmax(scores: np.ndarray, seen: np.ndarray) -> np.ndarray:
    e = np.where(seen, np.exp(scores - np.where(seen, scores, -np.inf).max(-1, keepdims=True)), 0)
    return e / e.sum(-1, keepdims=True)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def urpe(q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: np.ndarray, w: Weights, x: np.ndarray) -> np.ndarray:
    reach = -(w["relative.table"].shape[1] // (1 if seen[0, -1] == 0 else 2) - (seen[0, -1] == 0))
    offset = np.clip(np.arange(len(k)) - np.arange(len(q))[:, None] - reach, 0, w["relative.table"].shape[1] - 1)
    weights = softmax(q @ k.T / math.sqrt(WIDTH) + w["relative.table"][w["head"], offset], seen)
    return weights * w["relative.factor"][w["head"], offset] @ v


def softplus(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: np.ndarray, w: Weights, x: np.ndarray, power: float | None
) -> np.ndarray:
    q, k = (a / np.linalg.norm(a, axis=-1, keepdims=True) for a in (q, k))
    count = seen.sum(-1, keepdims=True)
    weights = np.log1p(np.exp(math.log(WIDTH) * np.log(count) * (q @ k.T))) * seen
    weights /= weights.sum(-1, keepdims=True) + 1e-8
    if power is not None:
        weights = np.maximum(count * weights - (count > 3), 0) ** power * seen
        weights /= weights.sum(-1, keepdims=True) + 1e-8
    return weights @ v


def selective(q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: np.ndarray, w: Weights, x: np.ndarray) -> np.ndarray:
    def temperature(name: str, made: np.ndarray) -> np.ndarray:
        if f"{name}_temperature.weight" in w:
            f = gelu(made) @ w[f"{name}_temperature.weight"][w["head"]]
        else:
            hidden = x @ w[f"{name}_temperature.hidden.kernel"] + w[f"{name}_temperature.hidden.bias"]
            out = gelu(hidden) @ w[f"{name}_temperature.out.kernel"] + w[f"{name}_temperature.out.bias"]
            f = out[:, w["head"]]
        return np.tanh(f) + 1 + np.log(seen.sum(-1)) / (1 + np.exp(-w[f"{name}_temperature.alpha"]))

    scores = temperature("query", q)[:, None] * (q @ k.T) / math.sqrt(WIDTH)
    return softmax(scores, seen) @ (temperature("value", v)[:, None] * v)


def normalized(q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: np.ndarray, w: Weights, x: np.ndarray) -> np.ndarray:
    scores, count = q @ k.T / math.sqrt(WIDTH), seen.sum(-1, keepdims=True)
    mean = (scores * seen).sum(-1, keepdims=True) / count
    deviation = np.sqrt(((scores - mean) ** 2 * seen).sum(-1, keepdims=True) / count) + 1e-3
    return (w["gain"][w["head"]] * (scores - mean) / deviation + w["shift"][w["head"]]) * seen @ v


def convolved(q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: np.ndarray, w: Weights, x: np.ndarray) -> np.ndarray:
    def convolution(part: str, heads: np.ndarray) -> np.ndarray:
        kernel = w[f"{part}_convolution.kernel"][:, 0]
        padded = np.concatenate([np.zeros((len(kernel) - 1, WIDTH)), heads])
        return sum(kernel[i] * padded[i : i + len(heads)] for i in range(len(kernel))) + w[f"{part}_convolution.bias"]

    q, k, v = convolution("query", q), convolution("key", k), convolution("value", v)
    keys, bias = w["distance_key"][w["head"]], w["distance_bias"][w["head"]]
    offset = np.clip(np.arange(len(k)) - np.arange(len(q))[:, None] + len(bias) - 1, 0, len(bias) - 1)
    scores = (q + w["content"][w["head"]]) @ k.T + np.einsum("qd,qkd->qk", q, keys[offset]) + bias[offset]
    return softmax(scores / math.sqrt(WIDTH), seen) @ v


def sigmoid(q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: np.ndarray, w: Weights, x: np.ndarray) -> np.ndarray:
    return seen / (1 + np.exp(-(q @ k.T / math.sqrt(WIDTH) - 3.5))) @ v


def isomorphic(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: np.ndarray, w: Weights, x: np.ndarray, f: Any
) -> np.ndarray:
    head = w["head"]
    own = x[:, head * WIDTH : (head + 1) * WIDTH]
    hidden = (w["self_weight"][head] * own + f(softmax(q @ k.T / math.sqrt(WIDTH), seen)) * seen @ own) @ w["mlp.up"][
        head
    ]
    hidden += w["mlp.up_bias"][head]
    hidden *= w["mlp.scale"][head] / np.sqrt((hidden**2).mean(-1, keepdims=True) + 1e-6)
    return hidden / (1 + np.exp(-hidden)) @ w["mlp.down"][head] + w["mlp.down_bias"][head]


def cosine(q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: np.ndarray, w: Weights, x: np.ndarray) -> np.ndarray:
    q, k = (a / np.linalg.norm(a, axis=-1, keepdims=True) for a in (q, k))
    count = seen.sum(-1, keepdims=True)
    return q @ k.T * seen @ (v * count ** (-1 / (1 + np.exp(-w["power"][w["head"]]))))


def flow(q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: np.ndarray, w: Weights, x: np.ndarray) -> np.ndarray:
    q, k = 1 / (1 + np.exp(-q)), 1 / (1 + np.exp(-k))
    count = seen.sum(-1)
    step = count if seen[0, -1] == 0 else 1.0
    small = 1e-6
    into = step / ((q + small) * (seen @ k + small)).sum(-1)
    out_of = step / ((k + small) * (seen @ q + small)).sum(-1)
    sinks = ((q + small) * (seen @ (k * out_of[:, None]) + small)).sum(-1) / step
    sources = np.exp(np.clip(((k + small) * (seen @ (q * into[:, None]) + small)).sum(-1) / step, -1, 1))
    share = count * sources / (seen @ sources)
    return ((q * (into / step)[:, None]) @ k.T * seen @ (share[:, None] * v)) / (1 + np.exp(-sinks))[:, None]


EQUATIONS: dict[str, tuple[str, dict[str, Any], Callable[..., np.ndarray]]] = {
    "urpe": ("urpe_attention", {"reach": 5}, urpe),
    "lssa": ("softplus_attention", {"power": None}, functools.partial(softplus, power=None)),
    "lssar": ("softplus_attention", {"power": 3.0}, functools.partial(softplus, power=3.0)),
    "selective": ("selective_attention", {}, selective),
    "selective mlp": ("selective_attention", {"token": "mlp"}, selective),
    "normalized": ("normalized_attention", {}, normalized),
    "sigmoid": ("attention", {"normalize": "sigmoid", "logit_bias": -3.5}, sigmoid),
    "gin": ("gin_attention", {}, functools.partial(isomorphic, f=lambda a: a)),
    "gin silu": (
        "gin_attention",
        {"edges": "silu", "threshold": 0.3},
        functools.partial(isomorphic, f=lambda a: (a - 0.3) / (1 + np.exp(0.3 - a))),
    ),
    "cosine": ("cosine_attention", {}, cosine),
    "flow": ("flow_attention", {}, flow),
    "rcmha": ("relative_convolutional_attention", {"reach": 6}, convolved),
}


def expected(equation: Callable[..., np.ndarray], weights: Weights, x: np.ndarray, causal: bool) -> np.ndarray:
    """The equation, row by row and head by head, in float64; zeros in the padding."""
    project = {
        name: x @ weights[f"{name}.kernel"] + weights.get(f"{name}.bias", 0.0)
        for name in ("query", "key", "value")
        if f"{name}.kernel" in weights
    }
    found = np.zeros_like(x)
    for row, length in enumerate(ROWS):
        seen = np.tril(np.ones((length, length))) if causal else np.ones((length, length))
        for head in range(HEADS):
            part = slice(head * WIDTH, (head + 1) * WIDTH)
            q, k, v = (project.get(name, x)[row, :length, part] for name in ("query", "key", "value"))
            found[row, :length, part] = equation(q, k, v, seen, {**weights, "head": head}, x[row, :length])
    return found @ weights["out.kernel"] + weights.get("out.bias", 0.0)


WAYS = [
    (name, causal)
    for name, (mixer, _, _) in EQUATIONS.items()
    for causal in (True, False)
    if causal or layers.mixer_class(mixer).supports_bidirectional
]


@pytest.mark.parametrize(("name", "causal"), tiered(WAYS, lambda way: way[1]))
def test_values_and_slopes_of_the_equation(name: str, causal: bool) -> None:
    """The slope is that along a random direction in which every parameter moves."""
    mixer, options, equation = EQUATIONS[name]
    spec = {"name": mixer, "kernel_init": truncated_normal(0.4), **options}
    if layers.mixer_class(mixer).supports_bidirectional:
        spec["causal"] = causal
    layer = layers.create_mixer(spec, FEATURES, num_heads=HEADS, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    graphdef, state = nnx.split(layer)
    state = jax.tree.map(lambda a: np.asarray(a) + np.asarray(0.2 * rng.standard_normal(a.shape), a.dtype), state)
    x = rng.standard_normal((len(ROWS), LENGTH, FEATURES)).astype(np.float32)
    mask = np.arange(LENGTH) < np.array(ROWS)[:, None]
    cotangent = (rng.standard_normal(x.shape) * mask[..., None]).astype(np.float32)

    @jax.jit
    def run(state: nnx.State, x: jax.Array) -> Any:
        def loss(state: nnx.State, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            y = nnx.merge(graphdef, state)(x, Tokens(jnp.asarray(mask)))
            return jnp.sum(y * cotangent), y

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(state, x)

    (_, got), gradients = run(state, x)
    weights = {name: np.asarray(a, np.float64) for name, a in flatten(nnx.merge(graphdef, state)).items()}
    slopes = {name: np.asarray(a, np.float64) for name, a in flatten(nnx.merge(graphdef, gradients[0])).items()}
    want = expected(equation, weights, x.astype(np.float64), causal)
    assert relative(np.asarray(got) * mask[..., None], want * mask[..., None]) < 1e-5
    ways = {name: rng.standard_normal(a.shape) for name, a in weights.items()}
    way, step = rng.standard_normal(x.shape) * mask[..., None], 1e-5

    def moved(sign: int) -> float:
        there = {name: a + sign * step * ways[name] for name, a in weights.items()}
        return float(np.sum(expected(equation, there, x + sign * step * way, causal) * cotangent))

    slope = sum(float(np.sum(slopes[name] * ways[name])) for name in ways) + float(np.sum(gradients[1] * way))
    size = math.sqrt(sum(float(np.sum(a**2)) for a in slopes.values()))
    assert abs(slope - (moved(1) - moved(-1)) / (2 * step)) < 1e-4 * size
    assert all(np.abs(slopes[name]).max() > 0 for name in slopes if name != "key.bias"), "a parameter without effect"


def test_equal_tokens_show_what_the_factors_after_the_softmax_are_for() -> None:
    """With numbers before the softmax alone all positions of equal tokens look alike (the paper's proposition)."""
    x = np.broadcast_to(np.random.default_rng(0).standard_normal(FEATURES).astype(np.float32), (1, 9, FEATURES))
    for relative_, alike in (("learned", True), ("universal", False)):
        layer = layers.MultiHeadAttention(FEATURES, num_heads=HEADS, relative=relative_, rngs=nnx.Rngs(0))
        tables = {n: a for n, a in flatten(layer).items() if n.startswith("relative")}
        rng = np.random.default_rng(2)
        layers.assign(layer, {n: a + jnp.asarray(rng.standard_normal(a.shape), a.dtype) for n, a in tables.items()})
        y = np.asarray(jax.jit(layer)(jnp.asarray(x)))
        assert (np.abs(y - y[:, :1]).max() < 1e-6) == alike, relative_


@pytest.mark.parametrize("axis", ["length", "features"])
def test_gaussian_adaptive_attention_is_its_equation(axis: str) -> None:
    heads, gaussians = 3, 2
    spec = {"name": "gaussian_adaptive_attention", "gaussians": gaussians, "axis": axis}
    layer = layers.create_mixer(spec, FEATURES, num_heads=heads, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(4)
    layers.assign(layer, {"offset": jnp.asarray(rng.standard_normal((heads, gaussians)), jnp.float32)})
    weights = {name: np.asarray(a, np.float64) for name, a in flatten(layer).items()}
    x = rng.standard_normal((2, LENGTH, FEATURES))
    x[0, 3] = 40.0  # far from all others: no density is left of it
    got = np.asarray(jax.jit(layer)(jnp.asarray(x, jnp.float32), Tokens(jnp.arange(LENGTH) < jnp.array(ROWS)[:, None])))
    for row, length in enumerate(ROWS):
        values = x[row, :length] if axis == "length" else x[row, :length].T
        size = len(values) // heads
        for head in range(heads):
            part = values[head * size : (head + 1) * size if head < heads - 1 else None]
            mean, deviation = part.mean(0), np.sqrt(part.var(0, ddof=1) + 1e-8)
            density = np.ones_like(part)
            for offset, width in zip(weights["offset"][head], weights["width"][head], strict=True):
                y = (part - mean - offset) / deviation
                density *= np.exp(-(y**2) / (2 * width**2)) / np.sqrt(2 * np.pi * width**2)
            want = part * density / np.maximum(density.sum(0), 1e-8)
            found = got[row, :length] if axis == "length" else got[row, :length].T
            assert relative(found[head * size : head * size + len(part)], want) < 1e-5
    assert np.all(got[1, ROWS[1] :] == 0) or axis == "features"


def assert_recorded(name: str, layer: nnx.Module, recorded: Any = recorded) -> None:
    @jax.jit
    def run(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, pull = jax.vjp(layer, x)
        return value, pull(jnp.cos(value))[0]

    value, gradient = run(recorded.tokens())
    arrays = np.load(recorded.PATH)
    assert relative(value, arrays[f"{name}/out"]) < 1e-5
    assert relative(gradient, arrays[f"{name}/gradient"]) < 1e-5


@pytest.mark.reference
def test_relative_convolutional_attention_is_the_authors() -> None:
    theirs, reach, options = recorded.weights(), recorded.LENGTH - 1, {"num_heads": recorded.HEADS}
    layer = layers.RelativeConvolutionalAttention(recorded.FEATURES, reach=reach, **options, rngs=nnx.Rngs(0))
    past = slice(recorded.SPAN - reach, recorded.SPAN + 1)
    ours = {
        "out.kernel": theirs["output.weight"].T,
        "out.bias": theirs["output.bias"],
        "value.bias": theirs["value.0.linear.bias"],
        "content": theirs["query_pos_bias"],
        "distance_key": theirs["key_pos_embeddings"][past].swapaxes(0, 1),
        "distance_bias": theirs["key_pos_bias"][past].T,
    }
    for part in ("query", "key", "value"):
        ours[f"{part}.kernel"] = theirs[f"{part}.0.linear.weight"].T
        ours[f"{part}_convolution.kernel"] = theirs[f"{part}.1.conv.weight"].transpose(2, 1, 0)
        ours[f"{part}_convolution.bias"] = theirs[f"{part}.1.conv.bias"]
    assert ours.keys() == flatten(layer).keys()
    layers.assign(layer, {name: jnp.asarray(array) for name, array in ours.items()})
    assert_recorded("rcmha", layer)


@pytest.mark.reference
@pytest.mark.parametrize("edges", recorded.EDGES)
def test_graph_isomorphism_attention_is_the_authors(edges: str) -> None:
    theirs, spec = recorded.graph(), {"name": "gin_attention", "edges": edges, "causal": True}
    layer = layers.create_mixer(spec, recorded.FEATURES, num_heads=recorded.HEADS, rngs=nnx.Rngs(0))
    names = {"up": "mlp.0.weight", "up_bias": "mlp.0.bias", "down": "mlp.4.weight", "down_bias": "mlp.4.bias"}
    ours = {f"{name}.kernel": theirs[f"{name[0]}_proj.weight"].T for name in ("query", "key")}
    ours["out.kernel"] = theirs["o_proj.weight"].T
    for name, their in {**{f"mlp.{n}": t for n, t in names.items()}, "mlp.scale": "normlayer.weight"}.items():
        ours[name] = np.stack([theirs[f"gin_layers.{i}.{their}"].T for i in range(recorded.HEADS)])
    ours["self_weight"] = np.stack([theirs[f"gin_layers.{i}.epsilon"] for i in range(recorded.HEADS)])
    assert ours.keys() == flatten(layer).keys()
    layers.assign(layer, {name: jnp.asarray(array) for name, array in ours.items()})
    assert_recorded(edges, layer)


@pytest.mark.reference
@pytest.mark.parametrize("axis", recorded.AXES)
def test_gaussian_adaptive_attention_is_the_authors(axis: str) -> None:
    spec = {"name": "gaussian_adaptive_attention", "gaussians": recorded.GAUSSIANS, "axis": axis}
    layer = layers.create_mixer(spec, recorded.FEATURES, num_heads=recorded.HEADS, rngs=nnx.Rngs(0))
    layers.assign(layer, {name: jnp.asarray(array) for name, array in recorded.mixtures().items()})
    assert_recorded(axis, layer)


@pytest.mark.reference
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["flow", "cosine"])
def test_attention_in_authors_layers_is_the_authors(name: str, causal: bool) -> None:
    options: dict[str, Any] = {"num_heads": authors_layers.HEADS, "rngs": nnx.Rngs(0)}
    layer = layers.create_mixer(f"{name}_attention", authors_layers.FEATURES, causal=causal, **options)
    theirs = {n.replace("weight", "kernel"): jnp.asarray(a.T) for n, a in authors_layers.weights().items()}
    layers.assign(layer, {n: theirs[n] for n in flatten(layer)})
    assert_recorded(f"{name}_causal" if causal else name, layer, authors_layers)


@pytest.mark.reference
def test_differential_mamba_is_the_authors() -> None:
    inner = {"name": "mamba2", "expand": 1, "head_dim": 4, "state_dim": authors_layers.STATE}
    layer = layers.DifferentialMamba(authors_layers.FEATURES, inner=inner, index=1, rngs=nnx.Rngs(0))
    names = {"mixer_1": "branches.0", "mixer_2": "branches.1", "conv1d": "conv", "subln": "norm"}
    ours = {}
    for name, array in authors_layers.differential().items():
        for theirs, own in names.items():
            name = name.replace(theirs, own)
        matrix = array.T if array.ndim == 2 else array.transpose(2, 1, 0) if array.ndim == 3 else array
        ours[name.replace("norm.weight", "norm.scale").replace("weight", "kernel")] = jnp.asarray(matrix)
    assert ours.keys() == flatten(layer).keys()
    layers.assign(layer, ours)
    assert_recorded("differential_mamba", layer, authors_layers)


@pytest.mark.reference
def test_mixture_of_heads_is_the_authors() -> None:
    """And its loss, which padding does not change."""
    theirs, names = (
        authors_layers.mixture(),
        {"wg": "routed_gate", "wg_0": "balance", "wg_1": "shared_gate", "proj": "out"},
    )
    options: dict[str, Any] = {"shared": authors_layers.SHARED, "chosen": authors_layers.CHOSEN}
    layer = layers.MixtureOfHeads(authors_layers.FEATURES, num_heads=authors_layers.MANY, **options, rngs=nnx.Rngs(0))
    ours = {f"{names[n.split('.')[0]]}.kernel": a.T for n, a in theirs.items() if n.endswith("weight") and n[0] != "q"}
    ours["out.bias"] = theirs["proj.bias"]
    for i, part in enumerate(("query", "key", "value")):
        ours[f"{part}.kernel"] = np.split(theirs["qkv.weight"], 3)[i].T
        ours[f"{part}.bias"] = np.split(theirs["qkv.bias"], 3)[i]
    assert ours.keys() == flatten(layer).keys()
    layers.assign(layer, {name: jnp.asarray(array) for name, array in ours.items()})
    assert_recorded("mixture_of_heads", layer, authors_layers)
    x = np.pad(authors_layers.tokens(), ((0, 0), (0, 3), (0, 0)), constant_values=7.0)
    with layers.collecting(layers.AuxLoss) as sown:
        layer(
            jnp.asarray(x), Tokens(jnp.asarray(np.arange(x.shape[1])[None] < authors_layers.LENGTH).repeat(len(x), 0))
        )
    (loss,) = sown.named(layer).values()
    assert relative(loss, np.load(authors_layers.PATH)["mixture_of_heads/load_balance"]) < 1e-6
    gates = np.asarray(layer.gates(jnp.asarray(x)))
    assert ((gates > 0).sum(-1) == authors_layers.SHARED + authors_layers.CHOSEN).all()
    with pytest.raises(ValueError, match="1 shared and 2 routed heads can't be chosen from 2 heads"):
        layers.MixtureOfHeads(8, num_heads=2, shared=1, chosen=2, rngs=nnx.Rngs(0))


def test_heads_are_chosen_by_logits_whose_softmax_rounds_to_equal_numbers() -> None:
    layer = layers.MixtureOfHeads(8, num_heads=8, shared=2, chosen=2, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((1, 9, 8)).astype(np.float32)
    wanted, found = (np.asarray(layer.gates(jnp.asarray(size * x)))[..., 2:] > 0 for size in (1, 1e-8))
    np.testing.assert_array_equal(found, wanted)


def test_differential_mamba_has_two_strengths() -> None:
    layer = layers.DifferentialMamba(8, strength="exponential", vector=3, index=2, rngs=nnx.Rngs(0))
    first, second = np.random.default_rng(0).standard_normal((2, 1, 5, 8)).astype(np.float32)
    q1, k1, q2, k2 = (
        np.asarray(getattr(layer, f"lambda_{name}")[...], np.float64) for name in ("q1", "k1", "q2", "k2")
    )
    initial = 0.8 - 0.6 * math.exp(-0.6)
    y = first - (math.exp(q1 @ k1) - math.exp(q2 @ k2) + initial) * second.astype(np.float64)
    want = (1 - initial) * y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5)
    assert relative(layer.join([jnp.asarray(first), jnp.asarray(second)]), want) < 1e-5
    with pytest.raises(ValueError, match='strength is "sigmoid" or "exponential"'):
        layers.DifferentialMamba(8, strength="softmax", rngs=nnx.Rngs(0))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["lssar", "normalized"])
def test_what_float32_can_not_hold_is_never_made(name: str) -> None:
    """Identical keys far from 0, and a length whose 15th power overflows."""
    mixer, _, _ = EQUATIONS[name]
    layer = layers.create_mixer(mixer, 4, num_heads=1, causal=True, kernel_init=truncated_normal(1.0), rngs=nnx.Rngs(0))
    x = 50 + np.random.default_rng(3).standard_normal((2, 400, 4)) * np.array([0, 1e-3])[:, None, None]
    value, gradient = jax.jit(jax.value_and_grad(lambda x: jnp.sum(layer(x))))(np.asarray(x, np.float32))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_selective_attention_may_start_as_plain_attention() -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 64, FEATURES)), jnp.float32)
    plain = layers.MultiHeadAttention(FEATURES, num_heads=HEADS, causal=True, rngs=nnx.Rngs(0))
    options: dict[str, Any] = {"alpha": -8.0, "kernel_init": layers.initializers.zeros}
    layer = layers.SelectiveAttention(FEATURES, num_heads=HEADS, causal=True, **options, rngs=nnx.Rngs(0))
    layers.assign(layer, flatten(plain))
    difference = relative(jax.jit(layer)(x), jax.jit(plain)(x))
    assert 0 < difference < 3e-3


def test_wrong_options_are_named() -> None:
    common: dict[str, Any] = {"num_heads": 2, "rngs": nnx.Rngs(0)}
    with pytest.raises(ValueError, match=r"power=0\.5 would not sharpen"):
        layers.SoftplusAttention(8, power=0.5, **common)
    with pytest.raises(ValueError, match=r"heads of 1 feature are all 0"):
        layers.SoftplusAttention(2, **common)
    with pytest.raises(ValueError, match="reach is the greatest distance with its own entry"):
        layers.RelativeConvolutionalAttention(8, reach=0, **common)
    with pytest.raises(ValueError, match=r"logit_bias=-3\.0 changes no softmax"):
        layers.MultiHeadAttention(8, logit_bias=-3.0, **common)
    with pytest.raises(ValueError, match="edges='tanh' are not known"):
        layers.IsomorphicAttention(8, edges="tanh", **common)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="axis='time' is not known"):
        layers.GaussianAdaptiveAttention(8, axis="time", **common)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="token='head' is not known"):
        layers.SelectiveAttention(8, token="head", **common)  # type: ignore[arg-type]
