"""Linear attention with decays and weights: against layers of flash-linear-attention and transformers, and softmax."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers import Aaren, LightningAttention, assign, flatten
from layers.linear_attention.retention import log_decays
from tests.layers.mixer_cases import relative
from tests.references import linear_recurrences
from tests.tiers import tiered


def run(mixer: layers.Mixer, x: np.ndarray) -> jax.Array:
    graph, state = nnx.split(mixer)
    return jax.jit(lambda x: nnx.merge(graph, state)(x))(x)


@pytest.mark.parametrize("case", tiered(linear_recurrences.CASES, lambda case: "," not in case))
def test_recorded_layers(case: str, record_property: Any) -> None:
    name, options, *_ = linear_recurrences.CASES[case]
    place = layers.Place(num_heads=linear_recurrences.HEADS)
    mixer = layers.create_mixer(name, linear_recurrences.FEATURES, place=place, rngs=nnx.Rngs(0), **options)
    weights, recorded = linear_recurrences.load(case, flatten(mixer))
    assign(mixer, {key: jnp.asarray(value).reshape(flatten(mixer)[key].shape) for key, value in weights.items()})
    # All look back only: one program for all lengths.
    longest = max(x.shape[1] for x, _ in recorded)
    rows = [np.pad(x, ((0, 0), (0, longest - x.shape[1]), (0, 0))) for x, _ in recorded]
    found = np.split(np.asarray(run(mixer, np.concatenate(rows))), len(rows))
    difference = max(relative(got[:, : y.shape[1]], y) for got, (_, y) in zip(found, recorded, strict=True))
    about = {
        "architecture": f"{name} (layer)",
        "reference": f"flash-linear-attention, {case}",
        "kind": "recorded",
        "mapped": len(weights),
    }
    record_property("parity", {**about, "difference": difference})
    assert difference < 2e-5


@pytest.mark.parametrize("sharpness", [1.0, 1000.0])
def test_aaren_is_softmax_over_the_tokens_so_far(sharpness: float) -> None:
    """In float64, with logits of up to some thousands too."""
    mixer = Aaren(8, num_heads=2, rngs=nnx.Rngs(0))
    mixer.query[...] = mixer.query[...] * sharpness
    x = np.random.default_rng(0).standard_normal((2, 70, 8)).astype(np.float32)
    weights = {name: np.asarray(value, np.float64) for name, value in flatten(mixer).items()}
    k, v = (x.astype(np.float64) @ weights[f"{name}.kernel"] for name in ("key", "value"))
    logits = np.einsum("bthk,hk->bth", k.reshape(2, 70, 2, 4), weights["query"]) / 2
    scores = np.where(np.tri(70, dtype=bool)[None, :, :, None], logits[:, None], -np.inf)
    shares = np.exp(scores - scores.max(2, keepdims=True))
    shares /= shares.sum(2, keepdims=True)
    y = np.einsum("btsh,bshv->bthv", shares, v.reshape(2, 70, 2, 4)).reshape(2, 70, 8) @ weights["out.kernel"]
    # A logit of a thousand has an error of 1e-4 in float32, and its weight the same relative one.
    assert relative(run(mixer, x), y) < (1e-5 if sharpness == 1 else 1e-3)


def test_lightning_attention_is_the_formula() -> None:
    mixer = LightningAttention(12, num_heads=3, index=1, depth=3, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((1, 70, 12)).astype(np.float32)
    weights = {name: np.asarray(value, np.float64) for name, value in flatten(mixer).items()}
    q, k, v, u = (x[0].astype(np.float64) @ weights[f"{name}.kernel"] for name in ("query", "key", "value", "gate"))
    q, k, v = (a.reshape(70, 3, 4) for a in (q / (1 + np.exp(-q)), k / (1 + np.exp(-k)), v))
    slopes = np.asarray([2**-4, 2**-8, 2**-2]) * (0.5 + 1e-5)
    apart = np.subtract.outer(np.arange(70), np.arange(70))
    decay = np.where(apart[..., None] >= 0, np.exp(-slopes * np.maximum(apart, 0)[..., None]), 0)
    o = np.einsum("thk,shk,tsh,shv->thv", q, k, decay, v).reshape(70, 12)
    y = (u * o / np.sqrt(np.mean(o**2, -1, keepdims=True) + 1e-6)) @ weights["out.kernel"]
    assert relative(run(mixer, x)[0], y) < 1e-5


def test_decays_of_retention() -> None:
    np.testing.assert_allclose(
        np.exp(log_decays(3, "powers").astype(np.float64)), [1 - 1 / 32, 1 - 1 / 64, 1 - 1 / 128], rtol=1e-7
    )
    expected = 1 - np.exp(np.linspace(np.log(1 / 32), np.log(1 / 512), 8))
    np.testing.assert_allclose(np.exp(log_decays(8, "paper").astype(np.float64)), expected, rtol=1e-7)


@pytest.mark.parametrize("name", ["hgrn", "hgrn2"])
def test_bounds_from_the_model(name: str) -> None:
    """A bound that each call is given is as one that the mixer is made with; what blocks hand on passes by it."""
    place, x = layers.Place(num_heads=2), np.random.default_rng(0).standard_normal((1, 9, 8)).astype(np.float32)
    fixed, given = (
        layers.create_mixer(name, 8, place=place, lower_bound=bound, rngs=nnx.Rngs(0)) for bound in (0.3, None)
    )
    y, handed = given(x, None, "shared", jnp.full((8,), 0.3))
    assert handed == "shared"
    assert relative(y, fixed(x)) < 1e-6


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("retention", {"decays": "xpos"}, 'decays is "powers" or "paper", got \'xpos\''),
        (
            "gated_linear_attention",
            {"key_expansion": 0.25},
            "4 features can't be split over 3 heads: choose a number of heads that divides them",
        ),
        ("rg_lru", {}, "16 features can't be split into 3 equal blocks"),
        ("hgrn", {"lower_bound": -0.1}, "lower_bound must be at least 0 and below 1; got -0.1"),
        ("hgrn2", {"lower_bound": 1.0}, "lower_bound must be at least 0 and below 1; got 1.0"),
    ],
)
def test_misfits(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        layers.create_mixer(name, 16, place=layers.Place(num_heads=3), rngs=nnx.Rngs(0), **options)
