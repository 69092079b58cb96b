"""LION and Hydra against recorded outputs and gradients of their authors' layers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layers import Hydra, LionAttention, Mixer, NaturalLionAttention, Tokens, assign, flatten
from layers.state import flatten_state
from tests.layers.mixer_cases import relative
from tests.references import bidirectional as recorded
from tests.tiers import tiered

NAMES = ("lion selective", "lion fixed", "lion none", "lion_natural fixed", "lion_natural selective", "hydra")
_HYDRA = {
    "in_proj.kernel": "in_proj.weight", "out_proj.kernel": "out_proj.weight", "conv.kernel": "conv1d.weight",
    "conv.bias": "conv1d.bias",
    "diagonal.kernel": "fc_D.weight", "norm.scale": "norm.weight", "dt_bias": "dt_bias", "A_log": "A_log", "D": "D",
}  # fmt: skip
_LION = {"out.kernel": "proj.weight", "out.bias": "proj.bias", "decay.kernel": "a_i.weight", "decay.bias": "a_i.bias"}
_LION |= {
    "column_decay.kernel": "a2_i.weight",
    "column_decay.bias": "a2_i.bias",
    "rates": "a_i",
    "column_rates": "a2_i",
}


def layer(name: str) -> Mixer:
    if name == "hydra":
        return Hydra(recorded.FEATURES, state_dim=4, conv_size=5, head_dim=8, groups=2, rngs=nnx.Rngs(0))
    mixer, kind = name.split()
    made: Any = NaturalLionAttention if mixer == "lion_natural" else LionAttention
    return made(recorded.FEATURES, num_heads=recorded.HEADS, decay=kind, rngs=nnx.Rngs(0))


def ours(name: str, theirs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the reference has by its names, by ours."""
    if name == "hydra":
        found = {own: theirs[other] for own, other in _HYDRA.items()}
    else:
        found = {own: theirs[other] for own, other in _LION.items() if other in theirs}
        for leaf, part in (("kernel", "weight"), ("bias", "bias")):
            split = np.split(theirs[f"qkv.{part}"], 3)
            found |= {f"{own}.{leaf}": a for own, a in zip(("query", "key", "value"), split, strict=True)}
    return {own: a.transpose(*reversed(range(a.ndim))) if own.endswith("kernel") else a for own, a in found.items()}


@pytest.mark.parametrize("name", tiered(NAMES, ("lion_natural selective", "hydra").__contains__))
def test_recorded_outputs_and_gradients(name: str, record_property: Any) -> None:
    expected, gradients = recorded.load(name)
    mixer = layer(name)
    weights = ours(name, recorded.weights({key: g.shape for key, g in gradients.items()}))
    assert weights.keys() == flatten(mixer, nnx.Param).keys()
    assign(mixer, {own: jnp.asarray(a) for own, a in weights.items()})
    # A class token and a grid.
    known = Tokens() if name == "hydra" else Tokens(grid=(4, 4))

    @nnx.jit
    def run(mixer: Any) -> Any:
        def loss(mixer: Any) -> Any:
            out = mixer(jnp.asarray(recorded.inputs()), known)
            return jnp.sin(out).sum(), out

        return nnx.grad(loss, has_aux=True)(mixer)

    found, out = jax.device_get(run(mixer))
    found, wanted = flatten_state(found), ours(name, gradients)
    scale = max(float(np.nanmax(np.abs(g))) for g in wanted.values() if not np.isnan(g).all())
    known_to_them = {own: g for own, g in wanted.items() if not np.isnan(g).all()}
    assert len(known_to_them) > 5
    wrong = {own: np.abs(np.asarray(found[own]) - g).max() / scale for own, g in known_to_them.items()}
    assert {own: value for own, value in wrong.items() if value > 1e-4} == {}
    difference = relative(out, expected)
    about = {"architecture": f"{name} (layer)", "kind": "recorded", "mapped": len(weights), "difference": difference}
    record_property("parity", {**about, "reference": "goombalab/hydra" if name == "hydra" else "LIONS-EPFL/LION"})
    assert difference < 1e-4
