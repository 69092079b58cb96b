"""LSH attention: whole rows beside transformers, pieces beside their equation, and what padding does not change."""

from __future__ import annotations

import copy
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers.sparse import lsh
from tests.compilation import program
from tests.layers.mixer_cases import relative

HEADS, WIDTH, FEATURES, LENGTH = 2, 5, 12, 16
RNG = np.random.default_rng(0)


def made(**options: Any) -> Any:
    rngs = nnx.Rngs(0)
    given = {"num_heads": HEADS, "head_dim": WIDTH, "chunk": 4, "buckets": 6, **options}
    return layers.create_mixer(
        "lsh_attention", FEATURES, rngs=rngs, kernel_init=layers.initializers.truncated_normal(0.6), **given
    )


@functools.cache
def theirs(causal: bool, rounds: int, length: int) -> Any:
    """transformers' attention and output layer with our weights' values, and its rotations."""
    from tests.references.live import randomize, torch

    transformers = pytest.importorskip("transformers", reason="the reference implementation needs transformers")
    from transformers.models.reformer import modeling_reformer as reformer

    config = transformers.ReformerConfig(
        attention_head_size=WIDTH, num_attention_heads=HEADS, hidden_size=FEATURES, lsh_attn_chunk_length=4,
        num_hashes=rounds, num_buckets=6, is_decoder=causal, hash_seed=3, lsh_attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
    )  # fmt: skip
    attention, output = reformer.LSHSelfAttention(config), reformer.ReformerSelfOutput(config)
    for number, module in enumerate((attention, output)):
        randomize(module, number)
    torch.manual_seed(3)
    return attention, output, torch.randn((HEADS, WIDTH, rounds, 3)).numpy()


@pytest.mark.reference
@pytest.mark.full
@pytest.mark.parametrize(("causal", "rounds", "padded"), [(True, 2, False), (False, 3, True), (True, 1, True)])
def test_matches_transformers(
    causal: bool, rounds: int, padded: bool, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    """Output, and gradient of the input and of every weight, with its rotations and its wrapping.

    Theirs in float64: its weights of a token that is alone are off by 0.4 % in float32.
    """
    import transformers

    from tests.references.live import torch

    attention, output, rotations = theirs(causal, rounds, LENGTH)
    ours = made(causal=causal, rounds=rounds, wrap=True)
    monkeypatch.setattr(lsh, "_rotations", lambda seed, shape: rotations)
    attention, output = (copy.deepcopy(module).double() for module in (attention, output))
    rotated = torch.from_numpy(rotations).double()
    monkeypatch.setattr(torch, "randn", lambda *shape, **options: rotated)
    pairs = {"query_key": attention.query_key, "value": attention.value, "out": output.dense}
    for name, layer in pairs.items():
        getattr(ours, name).kernel.set_value(jnp.asarray(layer.weight.detach().numpy().T))
    x = RNG.standard_normal((2, LENGTH, FEATURES)).astype(np.float32)
    mask = np.arange(LENGTH) < np.array([[LENGTH], [11]]) if padded else np.ones((2, LENGTH), bool)
    given = torch.from_numpy(x).double().requires_grad_()
    expected = output(attention(given, attention_mask=torch.from_numpy(mask).long() if padded else None).hidden_states)
    chosen = torch.from_numpy(mask)[..., None]
    (torch.sin(expected) * chosen).sum().backward()
    graph, params = nnx.split(ours)

    def loss(params: Any, x: jax.Array) -> Any:
        found = nnx.merge(graph, params, copy=True)(x, jnp.asarray(mask) if padded else None)
        return jnp.sum(jnp.sin(found) * mask[..., None]), found

    (slopes, of_x), found = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)
    differences = [relative(np.asarray(found)[mask], expected.detach().numpy()[mask])]
    differences.append(relative(np.asarray(of_x)[mask], given.grad.numpy()[mask]))
    differences += [
        relative(slopes[name]["kernel"].get_value(), layer.weight.grad.numpy().T) for name, layer in pairs.items()
    ]
    about = {"reference": f"transformers {transformers.__version__}", "kind": "live", "mapped": 3}
    record_property("parity", {**about, "architecture": "lsh_attention", "difference": max(differences)})
    assert max(differences) < 1e-5


def by_equation(mixer: Any, x: np.ndarray) -> np.ndarray:
    """Float64: each token attends to those before it in its bucket, to itself where there is none."""
    wide = {name: np.asarray(getattr(mixer, name).kernel[...], np.float64) for name in ("query_key", "value", "out")}
    q, v = (np.asarray(x @ wide[name]).reshape(*x.shape[:2], HEADS, WIDTH) for name in ("query_key", "value"))
    buckets = np.asarray(mixer.hash(jnp.asarray(q, jnp.float32), x.shape[1]))
    k = q / np.linalg.norm(q, axis=-1, keepdims=True)
    found = np.zeros_like(q)
    for row, i, head in np.ndindex(q.shape[:3]):
        rounds = []
        for r in range(mixer.rounds):
            near = [j for j in range(i) if buckets[row, j, head, r] == buckets[row, i, head, r]]
            scores = np.array([q[row, i, head] @ k[row, j, head] for j in near] or [-1e5])
            total = np.logaddexp.reduce(scores)
            rounds.append((total, np.exp(scores - total) @ v[row, near or [i], head]))
        totals = np.array([total for total, _ in rounds])
        weights = np.exp(totals - np.logaddexp.reduce(totals))
        found[row, i, head] = sum(w * y for w, (_, y) in zip(weights, rounds, strict=True))
    return found.reshape(*x.shape[:2], -1) @ wide["out"]


def test_pieces_are_read_by_the_equation() -> None:
    mixer = made(causal=True)
    x = RNG.standard_normal((2, 11, FEATURES)).astype(np.float32)
    graph, state = nnx.split(mixer)
    extend = jax.jit(lambda x, kept: nnx.merge(graph, state).extend(x, kept))
    kept, found = mixer.init_state(2, 11), []
    for part in (slice(0, 6), slice(6, 7), slice(7, 11)):
        y, kept = extend(x[:, part], kept)
        found.append(y)
    assert relative(np.concatenate(found, 1), by_equation(mixer, x)) < 1e-5


@pytest.mark.parametrize("causal", [True, pytest.param(False, marks=pytest.mark.full)])
def test_padding_and_later_chunks_change_nothing(causal: bool) -> None:
    """Without wrapping a row of 10 with padding is that row alone; what tokens look at is never later."""
    mixer = made(causal=causal)
    x = RNG.standard_normal((1, 14, FEATURES)).astype(np.float32)
    mask = np.arange(14)[None] < 10
    padded = program(mixer)(np.where(mask[..., None], x, np.nan), mask)
    assert relative(np.asarray(padded)[:, :10], program(mixer)(x[:, :10])) < 1e-5
    if causal:
        slopes = jax.jit(jax.jacrev(lambda x: mixer(x)[0].sum(-1)))(x)[:, 0]
        size = np.abs(np.asarray(slopes)).sum(-1)
        assert np.triu(size, 1).max() == 0
        assert (size.sum(1) > 0).all()  # of its own place alone where it sees no other


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="chunk and rounds are at least 1 and buckets even; got 4, 2 and buckets=5"):
        made(buckets=5)
    with pytest.raises(ValueError, match="12 features can't be split over 5 heads: give head_dim"):
        made(num_heads=5, head_dim=None)
    assert lsh._factors(1024, 64) == (32,)
    assert lsh._factors(2**16, 64) == (32, 64)
