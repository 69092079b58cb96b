"""Mixers in less than quadratic time against independent forms in float64, row by row, and against recorded outputs of
their authors' code.
"""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers.fourier import transform
from layers.initializers import truncated_normal
from tests.compilation import program
from tests.layers.mixer_cases import relative
from tests.references import efficient_attention as recorded
from tests.references import seeded

ARRAYS = dict(np.load(recorded.PATH))
ABOUT = json.loads(str(ARRAYS.pop("about")))

COUNTS = (29, 17, 3, 1)
MASK = np.arange(29) < np.array(COUNTS)[:, None]
X = np.random.default_rng(0).standard_normal((4, 29, 8)).astype(np.float32)


def test_a_masked_row_is_transformed_at_its_own_length() -> None:
    mixer = layers.create_mixer("fourier_mixing", 8, rngs=nnx.Rngs(0))
    got = program(mixer)(np.where(MASK[..., None], X, np.nan), MASK)
    for row, count in enumerate(COUNTS):
        assert relative(got[row, :count], np.fft.fft2(X[row, :count].astype(np.float64)).real) < 1e-6
    assert (np.asarray(got)[~MASK] == 0).all()


def test_long_rows_are_transformed_with_exact_angles() -> None:
    """Squares of places are beyond 32 bits."""
    count, length = 70_001, 70_016
    x = np.random.default_rng(0).standard_normal((1, length, 1)).astype(np.float32)
    got = jax.jit(transform)(x.astype(np.complex64), np.array([count], np.int32))
    assert relative(np.abs(got[0, :count, 0]), np.abs(np.fft.fft(x[0, :count, 0].astype(np.float64)))) < 1e-5


def attend(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    weights = np.exp(q @ k.T / np.sqrt(q.shape[-1]))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("inverse", ["matrix", "batch"])
def test_rows_of_any_length_go_through_landmarks_of_their_own(inverse: str) -> None:
    """With many steps the inverse is the pseudo-inverse, however it starts; rows shorter than the landmarks are
    attended to exactly.
    """
    landmarks, heads = 4, 2
    options = {"landmarks": landmarks, "kernel_size": None, "steps": 30, "inverse": inverse, "use_bias": False}
    mixer = layers.create_mixer(
        "nystrom_attention", 8, num_heads=heads, **options, kernel_init=truncated_normal(0.7), rngs=nnx.Rngs(0)
    )
    got = program(mixer)(np.where(MASK[..., None], X, np.nan), MASK)
    kernels = [np.asarray(layer.kernel[...], np.float64) for layer in (mixer.query, mixer.key, mixer.value, mixer.out)]
    for row, count in enumerate(COUNTS):
        q, k, v = (X[row, :count].astype(np.float64) @ kernel for kernel in kernels[:3])
        parts = np.arange(count) * landmarks // count
        found = []
        for head in np.split(np.arange(8), heads):
            near, keys = (
                np.stack([a[parts == p].mean(0) for p in range(landmarks) if (parts == p).any()])
                for a in (q[:, head], k[:, head])
            )
            low = attend(q[:, head], keys) @ np.linalg.pinv(attend(near, keys)) @ attend(near, k[:, head])
            found.append((attend(q[:, head], k[:, head]) if count <= landmarks else low) @ v[:, head])
        assert relative(got[row, :count], np.concatenate(found, -1) @ kernels[3]) < 1e-4


# The mixer of a case, its options, and theirs: names of projections, and of what they do not transpose.
LENGTH, MOST = recorded.LENGTH, recorded.MOST
COSFORMER = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
LINFORMER = {"query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out"}
LINFORMER_OPTIONS = {"max_length": MOST, "rank": recorded.RANK, "use_bias": False, "out_bias": True}
NATIVE = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "gate": "g_proj", "out": "o_proj"}
NATIVE_OPTIONS = {
    "block": recorded.BLOCK,
    "selected": recorded.SELECTED,
    "window": recorded.WINDOW,
    "num_heads": recorded.QUERY_HEADS,
    "num_kv_heads": recorded.KEY_HEADS,
}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "cosformer": ("cosformer", {"max_length": None}, COSFORMER),
    "cosformer/causal": ("cosformer", {"max_length": LENGTH, "causal": True}, COSFORMER),
    "linformer": ("linformer_attention", LINFORMER_OPTIONS, LINFORMER),
    "linformer/one": ("linformer_attention", {**LINFORMER_OPTIONS, "num_kv_heads": 1}, LINFORMER),
    "native": ("native_sparse_attention", NATIVE_OPTIONS, NATIVE),
}


@pytest.mark.reference
@pytest.mark.parametrize("case", CASES)
def test_matches_recorded_layers(case: str, record_property: Any) -> None:
    """Outputs and gradients of the input."""
    name, options, names = CASES[case]
    state = seeded.weights({n: tuple(shape) for n, shape in ABOUT["shapes"][case].items()}, recorded.SEED)
    options = {"num_heads": recorded.HEADS, **options}
    mixer = layers.create_mixer(name, recorded.FEATURES, **options, rngs=nnx.Rngs(0))
    weights = {f"{ours}.kernel": state[f"{theirs}.weight"].T for ours, theirs in names.items()}
    weights |= {f"{ours}.bias": state[f"{theirs}.bias"] for ours, theirs in names.items() if f"{theirs}.bias" in state}
    weights |= {f"{part}_length": state[f"proj_{part[0]}"][None] for part in ("key", "value") if "proj_k" in state}
    assert weights.keys() == layers.flatten(mixer).keys()
    layers.assign(mixer, {n: jnp.asarray(w) for n, w in weights.items()})
    graphdef, params = nnx.split(mixer)
    got, pull = jax.vjp(jax.jit(lambda x: nnx.merge(graphdef, params)(x)), jnp.asarray(recorded.tokens()))
    pairs = (got, ARRAYS[f"{case}/out"]), (pull(jnp.cos(got))[0], ARRAYS[f"{case}/gradient"])
    difference = max(relative(*pair) for pair in pairs)
    about = {"reference": ABOUT[case.partition("/")[0]], "kind": "recorded", "mapped": len(state)}
    record_property("parity", {**about, "architecture": f"{name} (layer)", "difference": difference})
    assert difference < 1e-5


def test_what_was_made_for_a_length_refuses_more() -> None:
    x = jnp.zeros((1, 9, 8))
    linformer, cosformer = (
        layers.create_mixer(name, 8, num_heads=2, max_length=8, rngs=nnx.Rngs(0))
        for name in ("linformer_attention", "cosformer")
    )
    with pytest.raises(ValueError, match="rows for 8 tokens, got 9: make the mixer with a larger max_length"):
        linformer(x)
    with pytest.raises(ValueError, match="beyond max_length=8 weights would be negative, and there are 9 tokens"):
        cosformer(x)
    with pytest.raises(ValueError, match="does not know its document's length: give max_length"):
        layers.create_mixer("cosformer", 8, num_heads=2, max_length=None, causal=True, rngs=nnx.Rngs(0))
