"""Causal mixers as linear systems: what is known of their transitions, and what they lead to."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
import zoo
from tests.layers.mixer_cases import relative
from tests.tiers import tiered

FEATURES, LENGTH = 4, 6
X = np.random.default_rng(0).standard_normal((1, LENGTH, FEATURES)).astype(np.float32)


def create(name: str, **options: Any) -> layers.Mixer:
    place = layers.Place(num_heads=2)
    return layers.create_mixer({"name": name, **options}, FEATURES, causal=True, rngs=nnx.Rngs(0), place=place)


# A mixer, its options, the part that h is, and where its numbers lie in the state.
SYSTEMS: dict[str, tuple[dict[str, Any], str | None]] = {
    "linear_attention": ({}, None),
    "retention": ({}, "memory"),
    "hgrn": ({}, None),
    "delta_net": ({}, "memory"),
    "mamba": ({"state_dim": 2}, "hidden"),
    "s4d": ({"state_dim": 4}, None),
    "gru": ({}, None),
}


@pytest.fixture(scope="module", params=tiered(SYSTEMS, lambda name: name in ("mamba", "delta_net")))
def case(request: pytest.FixtureRequest) -> tuple[str, layers.Mixer, zoo.Dynamics, str | None]:
    options, part = SYSTEMS[request.param]
    mixer = create(request.param, **options)
    return request.param, mixer, zoo.dynamics(mixer, X, part), part


def test_the_steps_lead_to_the_mixers_state(case: tuple[str, layers.Mixer, zoo.Dynamics, str | None]) -> None:
    name, mixer, system, part = case
    h = np.zeros(system.written.shape[1])
    for transition, written in zip(system.transition, system.written, strict=True):
        h = transition @ h + written
    _, state = mixer.extend(jnp.asarray(X), mixer.init_state(1, max_length=LENGTH))
    paths = jax.tree_util.tree_leaves_with_path(state)
    leaves = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}
    for one, where in system.parts.items():
        leaf = np.asarray(leaves[one])
        leaf = np.stack([leaf.real, leaf.imag], -1) if np.iscomplexobj(leaf) else leaf
        assert relative(h[where], leaf.ravel()) < 1e-4
    assert system.linear == (name != "gru")
    assert part is None or list(system.parts) == [part]


def test_what_is_known_of_transitions(case: tuple[str, layers.Mixer, zoo.Dynamics, str | None]) -> None:
    name, _, system, _ = case
    found, identity = system.transition, np.eye(system.transition.shape[-1])
    if name == "linear_attention":
        assert np.array_equal(found, np.broadcast_to(identity, found.shape))
    elif name == "retention":  # two heads, whose matrices have equally many numbers
        rates = np.repeat([1 - 1 / 32, 1 - 1 / 64], len(identity) // 2)
        assert np.abs(found - rates * identity).max() < 1e-6
    elif name == "delta_net":  # the reflection of one key in a matrix of two columns, for each of two heads
        size = np.abs(system.eigenvalues())
        assert np.abs(size[:, :4] - 1).max() < 1e-5
        assert np.all((size[:, 4:] > 0) & (size[:, 4:] < 0.99))
    elif name == "s4d":  # the same for all tokens
        assert np.abs(found - found[0]).max() < 1e-6
        assert np.abs(system.eigenvalues()).max() < 1
    elif name in ("mamba", "hgrn"):
        assert np.abs(found * (1 - identity)).max() == 0
        assert np.all((found.diagonal(axis1=1, axis2=2) > 0) & (found.diagonal(axis1=1, axis2=2) < 1))


def test_influence_is_of_earlier_tokens() -> None:
    system = zoo.dynamics(create("retention"), X, "memory")
    influence = system.influence()
    assert np.all(np.tril(influence, -1)[np.tril_indices(LENGTH, -1)] > 0)
    assert not np.triu(influence).any()
    expected = np.linalg.norm(system.read[3] @ system.transition[2] @ system.written[1])
    assert influence[3, 1] == pytest.approx(expected, rel=1e-5)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"the state has no 'memories': it has convolutions.0.inputs, .*memory"):
        zoo.dynamics(create("delta_net"), X, "memories")
    with pytest.raises(ValueError, match=r"x is one example of tokens, \(1, length, features\); got \(6, 4\)"):
        zoo.dynamics(create("retention"), X[0])
    mixer = layers.create_mixer("attention", FEATURES, num_heads=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="keeps no state: dynamics takes a mixer made with causal=True"):
        zoo.dynamics(mixer, X)
    wide = layers.create_mixer("retention", 256, causal=True, num_heads=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="numbers, and 6 matrices of that many rows and columns are too large"):
        zoo.dynamics(wide, np.zeros((1, LENGTH, 256), np.float32))
