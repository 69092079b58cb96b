"""A mixture of memories against its definition: each memory by itself, over the tokens that go to it, in float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layers import MixtureOfMemories, assign, collecting, create_mixer, flatten
from layers.module import AuxLoss
from layers.norm import GatedRMSNorm
from tests.compilation import program
from tests.layers.mixer_cases import relative
from tests.tiers import tiered

FEATURES, HEADS, MEMORIES, CHOSEN = 8, 2, 3, 2


def make(param_dtype: Any = jnp.float64, **options: Any) -> MixtureOfMemories:
    given = {"name": "mixture_of_memories", "memories": MEMORIES, "chosen": CHOSEN, "conv_size": 3, **options}
    return create_mixer(given, FEATURES, causal=True, num_heads=HEADS, param_dtype=param_dtype, rngs=nnx.Rngs(0))


def one_memory(mixer: MixtureOfMemories, x: jax.Array, layers: list[Any]) -> jax.Array:
    """(tokens, heads, value_dim): what tokens (tokens, features), one after another, read in one memory."""
    convolved = []
    for layer, conv in zip((mixer.query, *layers[:2]), mixer.convolutions, strict=True):
        a = jnp.concatenate([jnp.zeros((2, FEATURES)), x @ layer.kernel[...]])
        taps = conv.kernel[...][:, 0]
        convolved.append(jax.nn.silu(sum(a[i : i + len(x)] * taps[i] for i in range(3))).reshape(len(x), HEADS, -1))
    q, k, v = convolved
    q, k = (a / jnp.sqrt(jnp.sum(a * a, axis=-1, keepdims=True) + 1e-6) for a in (q, k))
    beta = jax.nn.sigmoid(x @ layers[2].kernel[...])
    decay = jnp.exp(-jnp.exp(mixer.A_log[...]) * jax.nn.softplus(x @ layers[3].kernel[...] + mixer.dt_bias[...]))

    def step(state: jax.Array, token: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q, k, v, beta, decay = token
        state = decay[:, None, None] * state
        found = jnp.einsum("hk,hkv->hv", k, state)
        state = state + jnp.einsum("hk,hv->hkv", k, beta[:, None] * (v - found))
        return state, jnp.einsum("hk,hkv->hv", q, state) / (FEATURES // HEADS) ** 0.5

    empty = jnp.zeros((HEADS, FEATURES // HEADS, FEATURES // HEADS))
    return jax.lax.scan(step, empty, (q, k, v, beta, decay))[1]


def by_definition(mixer: MixtureOfMemories, x: jax.Array, chosen: np.ndarray) -> jax.Array:
    scores = jax.nn.softmax(x @ mixer.router.kernel[...])
    best = jnp.take_along_axis(scores, jnp.asarray(chosen), axis=1)
    weights = best / best.sum(1, keepdims=True)
    o = jnp.zeros((len(x), HEADS, FEATURES // HEADS))
    shared = [mixer.shared_key, mixer.shared_value, mixer.shared_beta, mixer.shared_decay]
    if mixer.shared_key is not None:
        o = one_memory(mixer, x, shared)
    for m in range(MEMORIES):
        tokens, place = np.nonzero(chosen == m)
        if len(tokens):
            layers = [part[m] for part in (mixer.key, mixer.value, mixer.beta, mixer.decay)]
            o = o.at[tokens].add(weights[tokens, place][:, None, None] * one_memory(mixer, x[tokens], layers))
    norm: GatedRMSNorm = mixer.norm
    o = o / jnp.sqrt(jnp.mean(o * o, axis=-1, keepdims=True) + norm.epsilon) * norm.scale[...]
    return (o.reshape(len(x), -1) * jax.nn.silu(x @ mixer.gate.kernel[...])) @ mixer.out.kernel[...]


@pytest.mark.parametrize(
    ("length", "shared"), tiered([(1, True), (13, True), (67, False)], lambda given: given == (13, True))
)
def test_each_memory_by_itself(length: int, shared: bool) -> None:
    """The output, and the gradients of input and parameters."""
    with jax.enable_x64():
        mixer = make(shared_memory=shared)
        x = jnp.asarray(np.random.default_rng(length).standard_normal((length, FEATURES)))
        scores = np.asarray(x @ mixer.router.kernel[...])
        chosen = np.argsort(-scores, axis=1)[:, :CHOSEN]
        graph, state = nnx.split(mixer)
        found = []
        for form in (
            lambda state, x: nnx.merge(graph, state)(x[None])[0],
            lambda state, x: by_definition(nnx.merge(graph, state), x, chosen),
        ):
            run = jax.jit(lambda state, x, form=form: _with_gradients(form, state, x))
            found.append(run(state, x))
        for got, want in zip(*found, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-9 * float(np.abs(want).max()) + 1e-14)


def _with_gradients(form: Any, state: nnx.State, x: jax.Array) -> list[jax.Array]:
    y, pull = jax.vjp(form, state, x)
    return [y, *jax.tree.leaves(pull(jnp.cos(y)))]


@pytest.mark.parametrize("size", [1e-9, 1e4])
def test_scores_that_round_to_equal_numbers_keep_their_order(size: float) -> None:
    """Those of small logits are all 1 / memories in float32, those of large ones 0, but for the largest."""
    narrow = make(jnp.float32)
    narrow.router.kernel[...] = size * narrow.router.kernel[...]
    x = np.random.default_rng(0).standard_normal((13, FEATURES)).astype(np.float32)
    got = program(narrow)(x[None])[0]
    with jax.enable_x64():
        wide = make()
        assign(wide, {name: np.asarray(a[...], np.float64) for name, a in flatten(narrow, nnx.Param).items()})
        chosen = np.argsort(-np.asarray(x.astype(np.float64) @ wide.router.kernel[...]), axis=1)[:, :CHOSEN]
        want = by_definition(wide, jnp.asarray(x, jnp.float64), chosen)
    assert relative(got, want) < 1e-4


def test_the_loss_of_equal_use_is_the_number_chosen() -> None:
    mixer = make(jnp.float32)
    x = np.random.default_rng(0).standard_normal((2, 9, FEATURES)).astype(np.float32)
    mask = np.arange(9) < np.asarray([[9], [4]])
    graph, state = nnx.split(mixer)

    @jax.jit
    def loss_of(state: nnx.State, x: jax.Array, mask: jax.Array) -> jax.Array:
        merged = nnx.merge(graph, state)
        with collecting(AuxLoss) as sown:
            merged(x, mask)
        (loss,) = sown.named(merged).values()
        return loss

    loss = loss_of(state, jnp.where(mask[..., None], x, np.nan), mask)
    scores = jax.nn.softmax(x[mask] @ mixer.router.kernel[...], axis=-1)
    used = np.eye(MEMORIES)[np.argsort(-scores, axis=1)[:, :CHOSEN]].sum(1).mean(0)
    np.testing.assert_allclose(loss, MEMORIES * np.sum(used * scores.mean(0)), rtol=1e-5)
    mixer.router.kernel[...] = jnp.zeros_like(mixer.router.kernel[...])
    loss = loss_of(nnx.state(mixer), x, np.ones_like(mask))
    np.testing.assert_allclose(loss, CHOSEN, rtol=1e-6)


def test_refusal() -> None:
    with pytest.raises(ValueError, match="a token goes to 1 to 3 of 3 memories, not 4"):
        make(chosen=4)
