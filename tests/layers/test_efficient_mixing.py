"""Fourier mixing and attention through landmarks against independent forms in float64, row by row."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

import layers
from layers.fourier import transform
from layers.initializers import truncated_normal
from tests.compilation import program
from tests.layers.mixer_cases import relative

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
    """With many steps the inverse is the pseudo-inverse, however it starts; rows shorter than the landmarks are attended
    to exactly.
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
