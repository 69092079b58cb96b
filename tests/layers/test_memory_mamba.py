"""MemMamba against its equations, token by token in float64: values and slopes; what it is without notes; refusals."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layers import Mamba, MemoryMamba, assign, flatten
from layers.state_space.memory_mamba import Gate, Summaries
from tests.compilation import program
from tests.layers.mixer_cases import relative
from tests.tiers import tiered

FEATURES, SIZE, LENGTH, LAYERS = 6, 4, 150, 3
MICRO: dict[str, Any] = {"note_dim": SIZE, "state_dim": 2, "expand": 1, "step_rank": 2, "conv_size": 2}
RNG = np.random.default_rng(0)
X = RNG.standard_normal((1, LENGTH, FEATURES))
BELOW = RNG.standard_normal((1, LENGTH, LAYERS, SIZE))
KNOWN = RNG.random((1, LENGTH, LAYERS)) < 0.5
Weights = dict[str, np.ndarray]


def made(**options: Any) -> MemoryMamba:
    """With weights that make a difference."""
    mixer = MemoryMamba(FEATURES, **MICRO, **options, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    names = ("note", "query", "key", "fused", "layer")
    wide = {k: rng.standard_normal(a.shape) for k, a in flatten(mixer).items() if k.startswith(names)}
    assign(mixer, {k: jnp.asarray(a, jnp.float32) for k, a in wide.items()})
    return mixer


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def mamba(x: np.ndarray, w: Weights) -> np.ndarray:
    """One row (length, features) through the state space."""
    u, z = np.split(x @ w["in_proj.kernel"], 2, axis=-1)
    taps = w["conv.kernel"][:, 0]
    padded = np.concatenate([np.zeros((len(taps) - 1, u.shape[1])), u])
    u = sum(padded[i : i + len(u)] * tap for i, tap in enumerate(taps)) + w["conv.bias"]
    u = u * sigmoid(u)
    steps, b, c = np.split(u @ w["x_proj.kernel"], [2, 4], axis=-1)
    steps = np.log1p(np.exp(steps @ w["dt_proj.kernel"] + w["dt_bias"]))
    hidden, y = np.zeros((u.shape[1], 2)), []
    for t in range(len(u)):
        hidden = np.exp(-steps[t, :, None] * np.exp(w["A_log"])) * hidden + np.outer(steps[t] * u[t], b[t])
        y.append(hidden @ c[t] + w["D"] * u[t])
    return np.stack(y) * z * sigmoid(z) @ w["out_proj.kernel"]


class Exact:
    """The equations, for one row. A gate is open by ``x``, and its slope that of the sigmoid."""

    def __init__(self, mixer: MemoryMamba, options: dict[str, Any], x: np.ndarray):
        self.w = {name: np.asarray(a, np.float64) for name, a in flatten(mixer).items()}
        self.given = {"notes": 50, "window": 16, "note_threshold": 0.5, "recall_threshold": 0.5}
        self.given |= {"replacement": "oldest"} | options
        self.notes, self.recall = self.soft("note", x), self.soft("recall", self.shifted(x))

    def shifted(self, x: np.ndarray) -> np.ndarray:
        return np.concatenate([np.zeros_like(x[:1]), x[:-1]])

    def soft(self, name: str, x: np.ndarray) -> np.ndarray:
        return sigmoid(x @ self.w[f"{name}_gate.score.kernel"] + self.w[f"{name}_gate.score.bias"])[:, 0]

    def fuse(self, name: str, x: np.ndarray, c: np.ndarray) -> np.ndarray:
        c, fusion = c @ self.w[f"{name}.value.kernel"], self.given.get("fusion", "weighted")
        if fusion == "weighted":
            return self.w[f"{name}.weight"] * c
        gate = sigmoid(x @ self.w[f"{name}.gate.kernel"] + self.w[f"{name}.gate.bias"]) if fusion == "gated" else 1
        return x * c if fusion == "product" else gate * c

    def __call__(self, x: np.ndarray, below: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The output and what is found in the pool."""
        w, given = self.w, self.given
        noted, recalled = self.notes > given["note_threshold"], self.recall > given["recall_threshold"]
        worth = 1 + self.soft("note", x) - self.notes
        is_open = recalled + self.soft("recall", self.shifted(x)) - self.recall
        pool: list[tuple[float, np.ndarray]] = []
        window: list[tuple[float, np.ndarray]] = []
        joined, all_found = [], []
        for t, token in enumerate(x):
            found = np.zeros(SIZE)
            if pool:
                held = np.stack([note for _, note in pool])
                found = softmax(held @ w["key.kernel"] @ (token @ w["query.kernel"]) / SIZE**0.5) @ held
            all_found.append(found)
            token_joined = token + self.fuse("fused", token, found * is_open[t])
            if below is not None and "layer_query.kernel" in w and KNOWN[0, t].any():
                theirs = below[t][KNOWN[0, t]]
                query = token @ w["layer_query.kernel"]
                c = softmax(theirs @ w["layer_key.kernel"] @ query / SIZE**0.5) @ theirs
                token_joined = token_joined + self.fuse("layer_fused", token, c)
            joined.append(token_joined)
            if noted[t]:
                window.append((self.notes[t], token @ w["note.kernel"] * worth[t]))
            if (t + 1) % given["window"] == 0 and window:
                pool.append((max(score for score, _ in window), np.max([note for _, note in window], axis=0)))
                if len(pool) > given["notes"]:
                    pool.remove(pool[0] if given["replacement"] == "oldest" else min(pool, key=lambda note: note[0]))
            if (t + 1) % given["window"] == 0:
                window = []
        return mamba(np.stack(joined), w), np.stack(all_found)


CASES: dict[str, dict[str, Any]] = {
    "window": {"notes": 5, "window": 3},
    "each": {"notes": 4, "window": 1, "fusion": "gated"},
    "all": {"notes": LENGTH, "window": 1, "note_threshold": 0.0, "recall_threshold": 0.0, "fusion": "residual"},
    "product": {"notes": 70, "window": 1, "fusion": "product", "layers": LAYERS, "every": 2, "index": 2},
    "layers": {"notes": 3, "window": 2, "layers": LAYERS, "every": 2, "index": 3},
    "priority": {"notes": 5, "window": 2, "replacement": "priority"},
    "priorities": {"notes": 70, "window": 1, "note_threshold": 0.1, "replacement": "priority", "fusion": "gated"},
}


@pytest.mark.parametrize("name", tiered(CASES, lambda name: name == "layers"))
def test_the_equations(name: str) -> None:
    """The last notes, by brute force; a pool of all of them is attention to all that was noted before."""
    options = CASES[name]
    mixer = made(**options)
    graph, state = nnx.split(mixer)
    exact = Exact(mixer, options, X[0])
    rng = np.random.default_rng(2)
    direction, cotangent = (rng.standard_normal((LENGTH, FEATURES)) for _ in range(2))
    below = Summaries(jnp.asarray(BELOW, jnp.float32), jnp.asarray(KNOWN))

    @jax.jit
    def run(x: jax.Array) -> Any:
        def call(x: jax.Array) -> Any:
            out = nnx.merge(graph, state)(x, None, *([below, None] if mixer.shares else []))
            return out if mixer.shares else (out, None)

        y, pull, handed = jax.vjp(call, x, has_aux=True)
        return y, pull(jnp.asarray(cotangent[None], jnp.float32))[0], handed

    y, gradient, handed = run(jnp.asarray(X, jnp.float32))
    expected, found = exact(X[0], BELOW[0])
    assert relative(y[0], expected) < 1e-5
    later, earlier = (exact(X[0] + step * direction, BELOW[0])[0] for step in (1e-6, -1e-6))
    slope = ((later - earlier) * cotangent).sum() / 2e-6
    assert abs(float((gradient[0] * direction).sum()) / slope - 1) < 1e-4
    if mixer.shares:
        assert relative(handed.found[0, :, -1], found) < 1e-5
        np.testing.assert_array_equal(handed.found[:, :, :-1], below.found[:, :, 1:])
        np.testing.assert_array_equal(handed.known[0, :, -1], np.any(found != 0, axis=-1))


@pytest.mark.parametrize("options", [{"note_threshold": 1.0}, {"recall_threshold": 1.0}, {"notes": 0}])
def test_without_notes_it_is_mamba(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the state space reads is bit for bit what the mixer is given."""
    monkeypatch.setattr(Mamba, "recur", lambda self, x, tokens, state: (x, None))
    x = jnp.asarray(X[:, :9], jnp.float32)
    np.testing.assert_array_equal(program(made(window=2, **options))(x), x)
    assert not np.array_equal(program(made(window=2))(x), x)


@pytest.mark.full
def test_layers_below_in_pieces() -> None:
    """What is handed on passes by each token, in whatever pieces it comes."""
    mixer = made(notes=4, window=3, layers=LAYERS, every=2, index=1)
    x, below = jnp.asarray(X[:, :20], jnp.float32), Summaries(jnp.asarray(BELOW[:, :20], jnp.float32), KNOWN[:, :20])
    whole, handed = program(mixer)(x, None, below, None)
    state, extend, at = mixer.init_state(1), program(mixer, "extend"), 0
    for size in (4, 1, 1, 7, 7):
        here = slice(at, at + size)
        part = Summaries(below.found[:, here], below.known[:, here])
        y, state, given = extend(x[:, here], state, None, part, None)
        np.testing.assert_allclose(y, whole[:, here], atol=1e-5)
        np.testing.assert_allclose(given.found, handed.found[:, here], atol=1e-5)
        at += size


@pytest.mark.parametrize(("threshold", "noted"), [(0.0, [1, 1, 1]), (0.5, [0, 0, 1]), (1.0, [0, 0, 0])])
def test_thresholds_hold_where_the_sigmoid_is_rounded(threshold: float, noted: list[int]) -> None:
    """To 0 or 1: with 0 every token is noted, with 1 none."""
    gate = Gate(1, threshold, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    assign(gate, {"score.kernel": jnp.ones((1, 1))})
    is_open, _ = program(gate)(jnp.asarray([[[-200.0], [-1.0], [200.0]]]))
    np.testing.assert_array_equal(is_open[0, :, 0] > 0.5, noted)


def test_padding_is_not_noted() -> None:
    """Neither in the pool nor in what a window has so far."""
    mixer = made(notes=4, window=2, note_threshold=0.0)
    x, mask = jnp.asarray(X[:, :8], jnp.float32), np.arange(8)[None] < 5
    extend = program(mixer, "extend")
    _, kept = extend(jnp.where(mask[..., None], x, jnp.nan), mixer.init_state(1), mask)
    _, alone = extend(x[:, :5], mixer.init_state(1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), kept.notes, alone.notes)
    assert (int(kept.notes.held[0]), int(kept.notes.length[0])) == (2, 5)
    assert np.isfinite(kept.notes.pending).all()


def test_of_equal_priorities_the_oldest_stay() -> None:
    """And a higher one takes the place of the youngest."""
    options: dict[str, Any] = {"notes": 3, "window": 1, "note_threshold": 0.0}
    mixer = made(replacement="priority", **options)
    score = flatten(mixer)
    score["note_gate.score.kernel"] = jnp.zeros((FEATURES, 1)).at[0].set(1.0)
    assign(mixer, score)
    x = jnp.asarray(X[:, :12], jnp.float32).at[:, :, 0].set(0.0).at[:, 7, 0].set(1.0)
    notes = np.asarray(program(mixer, "extend")(x, mixer.init_state(1))[1].notes.summaries[0, :, :-1])
    np.testing.assert_allclose(notes, (x[0] @ score["note.kernel"])[np.array([0, 1, 7])], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"notes": -1}, "notes=-1"),
        ({"window": 0}, "window=0"),
        ({"fusion": "sum"}, 'fusion is "weighted", .* got \'sum\''),
        ({"replacement": "random"}, 'replacement is "oldest" or "priority", got \'random\''),
        ({"layers": 2}, "give its layers.Stack shared="),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MemoryMamba(FEATURES, **MICRO, **options, rngs=nnx.Rngs(0))(jnp.zeros((1, 3, FEATURES)))
