"""Routing attention against its formula in float64; what the future may change; how its centroids move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers import AuxLoss, Diagnostic, RoutingAttention, Tokens, assign, collecting, flatten, making
from tests.compilation import program
from tests.devices import EightDevices
from tests.layers.mixer_cases import relative
from tests.tiers import tiered

FEATURES, HEADS = 12, 2


def make(**options: Any) -> RoutingAttention:
    """A causal layer with weights that spread the scores, in evaluation mode."""
    options = {"num_heads": HEADS, "causal": True, "clusters": 3, "window": 6, **options}
    layer: Any = making.make(lambda rngs: RoutingAttention(FEATURES, **options, rngs=rngs), nnx.Rngs(0))
    rng = np.random.default_rng(1)
    assign(
        layer,
        {n: jnp.asarray(0.5 * rng.standard_normal(w.shape), jnp.float32) for n, w in flatten(layer, nnx.Param).items()},
    )
    layer.eval()
    return layer


def inputs(length: int, seed: int = 0, batch: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal((batch, length, FEATURES)), jnp.float32)


def with_members(layer: RoutingAttention) -> Callable[[Any], Any]:
    """The layer as one program, which returns the members of the clusters too."""

    @jax.jit
    def run(x: jax.Array) -> Any:
        with collecting(Diagnostic, name="members") as sown:
            y = layer(x)
        return y, sown.entries[0][-1]

    return run


@nnx.jit
def train(layer: RoutingAttention, x: jax.Array, mask: Any = None) -> list[jax.Array]:
    """Moves the centroids of a layer that is in training mode, and returns its auxiliary losses."""
    with collecting(AuxLoss) as sown:
        layer(x, mask)
    return [entry[-1] for entry in sown.entries]


def sphere(x: np.ndarray) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def formula(layer: RoutingAttention, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """y of one row x (length, features) by the docstrings, in float64, query by query, and in how many clusters each
    token was, by head.
    """
    weights = {n: np.asarray(w, np.float64) for n, w in flatten(layer).items()}
    length, heads = len(x), layer.num_heads
    q = sphere((x @ weights["query.kernel"]).reshape(length, heads, -1))
    k = q if layer.causal else sphere((x @ weights["key.kernel"]).reshape(length, heads, -1))
    v = (x @ weights["value.kernel"]).reshape(length, heads, -1)
    clusters = layer.clusters if layer.window or layer.membership == "causal" else min(layer.clusters, int(length**0.5))
    window = layer.window or (layer.clusters if layer.membership == "causal" else -(-length // clusters))
    out, times = np.zeros_like(v), np.zeros((length, heads))
    for h in range(heads):
        centroids = weights["centroids"][h, :clusters]
        if layer.membership == "causal":
            nearest = np.argmax(q[:, h] @ centroids.T, 1)
            groups = [([t], [s for s in range(t + 1) if nearest[s] == nearest[t]][-window:]) for t in range(length)]
        else:
            groups = [
                tuple(sorted(np.argsort(-(r[:, h] @ centroid))[:window]) for r in (q, k)) for centroid in centroids
            ]
        for queries, keys in groups:
            for t in queries:
                shown = [s for s in keys if s <= t or not layer.causal]
                scores = k[shown, h] @ q[t, h]
                if layer.relative is not None:
                    distance = np.minimum([keys.index(t) - keys.index(s) for s in shown], layer.relative.shape[0] - 1)
                    scores = scores + weights["relative"][distance] @ q[t, h]
                weight = np.exp(layer.scale * (scores - scores.max()))
                out[t, h] += weight @ v[shown, h] / weight.sum()
                times[t, h] += 1
    return (out / np.maximum(times, 1)[..., None]).reshape(length, -1) @ weights["out.kernel"], times


@pytest.mark.parametrize("causal", tiered([True, False], lambda causal: not causal))
def test_documents_with_fixed_memberships_do_not_see_each_other(causal: bool) -> None:
    """Clusters that hold the members of the clusters of each document by itself: of its queries and, apart from them,
    of its keys.
    """
    lengths, relative_options = (8, 8, 8), {"relative": 4} if causal else {}
    layer = make(causal=causal, window=3, **relative_options)
    x, ids = np.asarray(inputs(sum(lengths))), np.repeat(np.asarray([3, 0, 1]), lengths)[None]
    alone, members, start, run = [], [], 0, with_members(layer)
    for length in lengths:
        y, pair = run(x[:, start : start + length])
        alone.append(y)
        members.append([np.where(np.asarray(m) < length, np.asarray(m) + start, len(ids[0])) for m in pair])
        start += length
    union = tuple(jnp.asarray(np.sort(np.concatenate(parts, -1), -1)) for parts in zip(*members, strict=True))
    mix = program(layer, "mix")
    packed = mix(x, Tokens(segment_ids=ids), members=union)
    assert relative(packed, np.concatenate(alone, 1)) < 1e-5
    assert relative(mix(x, Tokens(), members=union), packed) > 1e-2


@pytest.mark.parametrize("length", tiered([5, 26], lambda length: length == 26))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": False},
        {"relative": 4, "scale": 1.0},
        {"window": None, "clusters": 64},
        {"window": None, "clusters": 2, "causal": False},
        {"membership": "causal"},
        {"membership": "causal", "window": 3, "relative": 2},
        {"membership": "causal", "window": None, "clusters": 5},
    ],
    ids=str,
)
def test_is_the_formula(options: dict[str, Any], length: int) -> None:
    layer, x = make(**options), inputs(length)
    want, _ = formula(layer, np.asarray(x[0], np.float64))
    assert relative(nnx.jit(lambda m, x: m(x))(layer, x)[0], want) < 1e-5


def test_a_token_may_be_in_no_cluster_and_in_several() -> None:
    layer, x = make(window=5), inputs(26)
    y, (want, times) = program(layer)(x), formula(layer, np.asarray(x[0], np.float64))
    assert {0, 1, 2} <= set(times.ravel())
    assert relative(y[0], want) < 1e-5
    nowhere = times.sum(1) == 0
    assert nowhere.any()
    np.testing.assert_array_equal(np.asarray(y[0])[nowhere], 0)


def test_with_memberships_held_fixed_the_future_changes_nothing() -> None:
    """The choice of members knows later tokens ("selection"); attention within the clusters does not."""
    layer, x = make(relative=4), inputs(26)
    run, mix = with_members(layer), program(layer, "mix")
    y, members = jax.device_get(run(x))
    for start in (1, 9, 20):
        changed = np.concatenate([x[:, :start], inputs(26, start)[:, start:]], 1)
        other = np.asarray(mix(changed, Tokens(), members=members))
        assert relative(other[:, :start], y[:, :start]) < 1e-6
        assert relative(other[:, start:], y[:, start:]) > 1e-3
    chosen_again = np.asarray(run(np.concatenate([x[:, :13], 5 * np.asarray(inputs(26, 3))[:, 13:]], 1))[0])
    assert relative(chosen_again[:, :13], y[:, :13]) > 1e-3, "later tokens do take the places of earlier ones"


def test_what_is_read_piece_by_piece_is_causal_membership() -> None:
    """A layer trained with balanced membership generates as the same weights with causal membership read."""
    trained, other, x = make(relative=4), make(relative=4, membership="causal"), inputs(26, batch=2)
    assert flatten(trained).keys() == flatten(other).keys()
    state, parts = trained.init_state(2), []
    extend = nnx.jit(lambda m, x, state: m.extend(x, state))
    for start, stop in ((0, 12), (12, 24), (24, 25), (25, 26)):
        y, state = extend(trained, x[:, start:stop], state)
        parts.append(y)
    assert relative(jnp.concatenate(parts, 1), nnx.jit(lambda m, x: m(x))(other, x)) < 1e-5
    assert (trained.streaming, other.streaming) == ("selection", "exact")


@pytest.mark.parametrize("membership", ["balanced", "causal"])
def test_centroids_follow_their_tokens_in_training_only(membership: str) -> None:
    layer, x = make(membership=membership, decay=0.9, clusters=40, window=2), inputs(9, batch=2)
    before = np.asarray(layer.centroids[...], np.float64)
    mask = np.arange(9) < np.array([9, 4])[:, None]
    train(layer, x, mask)
    np.testing.assert_array_equal(layer.centroids[...], before)
    layer.train()
    losses = train(layer, jnp.where(mask[..., None], x, jnp.nan), mask)
    q = sphere((np.asarray(x, np.float64) @ np.asarray(layer.query.kernel[...], np.float64)).reshape(2, 9, HEADS, -1))[
        mask
    ]
    want, squares = before.copy(), []
    for h in range(HEADS):
        nearest = np.argmax(q[:, h] @ before[h].T, 1)
        squares.append((q[:, h] - before[h][nearest]) ** 2)
        for j in set(nearest):
            want[h, j] = sphere(0.9 * before[h, j] + 0.1 * q[nearest == j, h].mean(0))
    assert relative(layer.centroids[...], want) < 1e-5
    moved = (np.asarray(layer.centroids[...]) != before).any(-1)
    assert 0 < moved.sum() < 0.7 * moved.size, "centroids without a token stay"
    assert float(losses[0]) == pytest.approx(np.mean(squares), rel=1e-5)


def test_centroids_are_saved_and_are_no_parameters() -> None:
    layer = make()
    assert "centroids" in flatten(layer)
    assert "centroids" not in flatten(layer, nnx.Param)
    layer.train()
    for _ in range(3):
        train(layer, jnp.zeros((1, 8, FEATURES)))  # tokens without a direction
        assert np.isfinite(layer.centroids[...]).all()


def test_centroids_agree_across_devices(eight_devices: EightDevices) -> None:
    """Split over the data axis, a batch moves the centroids as it does on one device, and the same on all."""
    shards = eight_devices("tests.layers.sequence_run:centroids", 4)
    layer = make(decay=0.5)
    layer.train()
    train(layer, inputs(20, batch=4))
    assert len(shards) == 4
    assert all(shard == shards[0] for shard in shards)
    assert relative(shards[0], layer.centroids[...]) < 1e-6


def test_refusals() -> None:
    with pytest.raises(ValueError, match="12 features can't be split over 5 heads"):
        make(num_heads=5)
    with pytest.raises(ValueError, match='membership is "balanced" or "causal"'):
        make(membership="streaming")
    for options in ({"membership": "causal"}, {"relative": 3}):
        with pytest.raises(ValueError, match="they need causal=True"):
            make(causal=False, **options)
    with pytest.raises(ValueError, match="must be at least"):
        make(window=0)
    with pytest.raises(NotImplementedError, match="not causal"):
        make(causal=False).init_state(1)
    assert isinstance(
        layers.create_mixer("routing", FEATURES, causal=True, num_heads=2, rngs=nnx.Rngs(0)), RoutingAttention
    )
