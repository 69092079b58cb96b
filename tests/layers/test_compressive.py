"""Compressive attention against its algorithm in numpy, its losses, and its limits."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layers import CompressiveAttention, TransformerXLAttention, assign, collecting, flatten
from layers.module import AuxLoss
from tests.compilation import program
from tests.layers.mixer_cases import relative
from tests.tiers import tiered

FEATURES, HEADS, SEGMENT = 8, 2, 4
Weights = dict[str, np.ndarray]


def make(**options: Any) -> CompressiveAttention:
    options = {"segment": SEGMENT, "memory": 4, "compressed": 3, "end_to_end": True, **options}
    init = nnx.initializers.normal(0.4)
    return CompressiveAttention(FEATURES, num_heads=HEADS, kernel_init=init, **options, rngs=nnx.Rngs(0))


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def content(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.stack([softmax(row @ k.T / q.shape[-1] ** 0.5) @ v for row in q])


def compress(w: Weights, old: np.ndarray, rate: int, how: str) -> np.ndarray:
    blocks = old.reshape(-1, rate, FEATURES)
    if how == "convolution":
        return np.asarray(blocks.reshape(len(blocks), -1) @ w["compress.kernel"] + w["compress.bias"])
    return np.asarray({"mean": np.mean, "max": np.max}[how](blocks, axis=1))


def algorithm(w: Weights, x: np.ndarray, memory: int, compressed: int, rate: int, how: str) -> tuple[np.ndarray, float]:
    """Algorithms 1 and 2 for one row (length, features): the outputs, and the loss of content attention.

    Keys and values are made anew of the hidden states at every segment, each query is one softmax over a list, and a
    distance is one of places in the list.
    """
    size, width = FEATURES // HEADS, compressed + memory + SEGMENT
    angles = np.arange(width)[:, None] / 10000.0 ** (np.arange(0, FEATURES, 2) / FEATURES)
    distances = np.concatenate([np.sin(angles), np.cos(angles)], 1) @ w["distance.kernel"]
    heads = lambda a, name: (a @ w[f"{name}.kernel"]).reshape(len(a), HEADS, size)  # noqa: E731
    slots, recent, used = np.zeros((0, FEATURES)), np.zeros((0, FEATURES)), np.zeros(0)
    out, errors = [], []
    for start in range(0, len(x), SEGMENT):
        now = x[start : start + SEGMENT]
        known = np.concatenate([slots, recent, now])
        q, k, v = heads(now, "query"), heads(known, "key"), heads(known, "value")
        used = np.concatenate([used, np.zeros(len(now))])
        for i in range(len(now)):
            own = len(slots) + len(recent) + i
            found = []
            for h in range(HEADS):
                r = distances[own - np.arange(own + 1)].reshape(-1, HEADS, size)[:, h]
                logits = k[: own + 1, h] @ (q[i, h] + w["content"][h]) + r @ (q[i, h] + w["place"][h])
                weights = softmax(logits / size**0.5)
                used[: own + 1 - len(slots)] += weights[len(slots) :]
                found.append(weights @ v[: own + 1, h])
            out.append(np.concatenate(found) @ w["out.kernel"])
        recent = np.concatenate([recent, now])
        if len(now) < SEGMENT or len(recent) <= memory:
            continue
        old, recent = recent[:-memory], recent[-memory:]
        if how == "most_used":
            seen_by = len(used) - np.arange(len(old))
            new = old[np.sort(np.argsort(-used[: len(old)] / seen_by)[: len(old) // rate])]
        else:
            new = compress(w, old, rate, how)
            parts = [[heads(a, name) for name in ("key", "value")] for a in (old, new)]
            for h in range(HEADS):
                (ok, ov), (nk, nv) = ([p[:, h] for p in part] for part in parts)
                errors.append(np.square(content(q[:, h], ok, ov) - content(q[:, h], nk, nv)).mean())
        used, slots = used[len(old) :], np.concatenate([slots, new])[-compressed:]
    return np.stack(out), float(np.mean(errors)) if errors else 0.0


def weights_of(mixer: nnx.Module) -> Weights:
    return {name: np.asarray(value, np.float64) for name, value in flatten(mixer).items()}


CASES = {"convolution": (4, 3, 2), "mean": (6, 5, 2), "max": (2, 2, 2), "most_used": (8, 3, 4)}


@pytest.mark.parametrize("length", tiered([1, 23, 67], lambda length: length == 23))
@pytest.mark.parametrize("how", tiered(CASES, lambda how: how == "convolution"))
def test_the_algorithm(how: str, length: int) -> None:
    """Outputs, and the change of their weighted sum along a random direction of the input and all weights."""
    memory, compressed, rate = CASES[how]
    mixer = make(memory=memory, compressed=compressed, rate=rate, compression=how)
    rng = np.random.default_rng(length)
    weights = weights_of(mixer) | {name: 0.4 * rng.standard_normal((HEADS, 4)) for name in ("content", "place")}
    assign(mixer, {name: jnp.asarray(value, jnp.float32) for name, value in weights.items()})
    x, weight = rng.standard_normal((2, length, FEATURES))
    want, _ = algorithm(weights, x, memory, compressed, rate, how)
    given = jnp.asarray(x[None], jnp.float32), jnp.asarray(weight[None], jnp.float32)

    def total(mixer: CompressiveAttention, x: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = mixer(x)
        return jnp.sum(y * weight), y

    (_, got), (gradient, of_x) = program(nnx.value_and_grad(total, argnums=(0, 1), has_aux=True))(mixer, *given)
    assert relative(got[0], want) < 2e-5
    directions = {name: rng.standard_normal(value.shape) for name, value in weights.items()}
    along = rng.standard_normal(x.shape)

    def value(step: float) -> float:
        moved = {name: weights[name] + step * direction for name, direction in directions.items()}
        return float((algorithm(moved, x + step * along, memory, compressed, rate, how)[0] * weight).sum())

    slope = (value(1e-6) - value(-1e-6)) / 2e-6
    found = float((np.asarray(of_x[0], np.float64) * along).sum())
    size = float(np.abs(np.asarray(of_x[0]) * along).sum())
    for name, g in flatten_gradient(gradient).items():
        found, size = found + float((g * directions[name]).sum()), size + float(np.abs(g * directions[name]).sum())
    assert abs(found - slope) < 1e-5 * size


def flatten_gradient(gradient: Any) -> Weights:
    return {".".join(map(str, path)): np.asarray(g, np.float64) for path, g in nnx.to_flat_state(nnx.as_pure(gradient))}


def losses(mixer: CompressiveAttention, x: jax.Array) -> tuple[jax.Array, nnx.State]:
    """The auxiliary loss, and its gradient."""

    def loss(mixer: CompressiveAttention, x: jax.Array) -> jax.Array:
        with collecting(AuxLoss) as sown:
            mixer(x)
        (value,) = sown.named(mixer).values()
        return jnp.asarray(value)

    return program(nnx.value_and_grad(loss))(mixer, x)


def test_what_the_loss_is_and_what_learns_from_it() -> None:
    """The convolution and nothing else learns from its loss, and from nothing else."""
    mixer = make(end_to_end=False)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((23, FEATURES))
    weights = weights_of(mixer)
    _, want = algorithm(weights, x, 4, 3, 2, "convolution")
    got, gradient = losses(mixer, jnp.asarray(x[None], jnp.float32))
    assert want > 0
    assert abs(float(got) - want) < 1e-5 * want
    found = flatten_gradient(gradient)
    learning = {name for name, g in found.items() if np.abs(g).max() > 0}
    assert learning == {"compress.kernel", "compress.bias"}
    direction = rng.standard_normal(weights["compress.kernel"].shape)

    def value(step: float) -> float:
        moved = weights | {"compress.kernel": weights["compress.kernel"] + step * direction}
        return algorithm(moved, x, 4, 3, 2, "convolution")[1]

    slope = (value(1e-5) - value(-1e-5)) / 2e-5
    assert abs(slope - float((found["compress.kernel"] * direction).sum())) < 1e-4 * abs(slope)
    of_output = nnx.grad(lambda mixer: jnp.sum(jnp.sin(mixer(jnp.asarray(x[None], jnp.float32)))))(mixer)
    assert not np.abs(flatten_gradient(of_output)["compress.kernel"]).any()


@pytest.mark.full
def test_autoencoding() -> None:
    """The loss is the mean squared error of what is restored; both maps learn from it."""
    mixer = make(end_to_end=False, loss="autoencoding")
    x = np.random.default_rng(0).standard_normal((1, 12, FEATURES)).astype(np.float32)
    got, gradient = losses(mixer, jnp.asarray(x))
    w = weights_of(mixer)
    slots = compress(w, np.asarray(x[0, :8], np.float64), 2, "convolution")
    error = (slots @ w["restore.kernel"] + w["restore.bias"]).reshape(8, FEATURES) - x[0, :8]
    np.testing.assert_allclose(got, np.square(error).mean(), rtol=1e-5)
    learning = {name.split(".")[0] for name, g in flatten_gradient(gradient).items() if np.abs(g).max() > 0}
    assert learning == {"compress", "restore"}


def test_the_loss_is_the_same_piece_by_piece() -> None:
    """Where the pieces end with segments."""
    mixer = make(end_to_end=False)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 24, FEATURES)), jnp.float32)

    def read(mixer: CompressiveAttention, x: jax.Array) -> jax.Array:
        state, found = mixer.init_state(len(x)), []
        for start in (0, 12):
            with collecting(AuxLoss) as sown:
                _, state = mixer.extend(x[:, start : start + 12], state)
            found += sown.named(mixer).values()
        return jnp.stack(found)

    # Of 5 segments with old tokens to compress, 2 lie in the first call: 1 of 3 and 3 of 3.
    first, second = program(read)(mixer, x)
    np.testing.assert_allclose((2 * first + 3 * second) / 5, losses(mixer, x)[0], rtol=1e-5)


def test_slots_of_one_token_are_a_longer_memory() -> None:
    """Means of one token each are Transformer-XL with a memory of P + N tokens."""
    mixer = make(rate=1, compression="mean", compressed=6)
    init = nnx.initializers.normal(0.4)
    plain = TransformerXLAttention(
        FEATURES, num_heads=HEADS, segment=SEGMENT, memory=10, kernel_init=init, rngs=nnx.Rngs(0)
    )
    assign(plain, flatten(mixer))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 31, FEATURES)), jnp.float32)
    assert relative(program(mixer)(x), program(plain)(x)) < 1e-5


def test_the_state_does_not_grow() -> None:
    state = jax.eval_shape(lambda: make().init_state(2, 10_000))
    assert state.key.shape == (2, 3 + 4 + 4, HEADS, 4)
    assert state.hidden.shape == (2, 8, FEATURES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 3}, "that 3 divides"),
        ({"compressed": 0}, "transformer_xl has no slots"),
        ({"compression": "dilated"}, "convolution, mean, max or most_used"),
        ({"compression": "most_used", "memory": 6}, "must be a multiple of segment=4"),
        ({"loss": "attention"}, "for a convolution that does not learn end to end"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)
