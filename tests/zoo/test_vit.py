"""ViT: names, register tokens and the outlier norms that register tokens were invented for."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from zoo.vision.vit import outlier_norms


def test_outlier_norms() -> None:
    """Two patches of eight are given tokens of a known large norm; registers and class token don't count, whatever
    their norm.
    """
    model = zoo.create("vit_small_patch14_reg4_dinov2", features=16, num_heads=2, depth=2, image_size=28, patch_size=14)
    model.eval()
    images = np.random.default_rng(0).standard_normal((2, 28, 28, 3)).astype(np.float32)
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state: nnx.State) -> tuple[jax.Array, jax.Array, jax.Array]:
        model: Any = nnx.merge(graphdef, state)
        return *outlier_norms(model, images), outlier_norms(model, images, cutoff=500.0)[1]

    norms, share, _ = run(state)
    assert norms.shape == (2, 2, 2)
    assert share == 0
    model.register_tokens[...] = jnp.full_like(model.register_tokens[...], 1e4)
    model.position.table[...] = model.position.table[...].at[0, 1].set(100.0)  # norm 100 * sqrt(16) = 400
    norms, share, far = run(nnx.state(model))
    assert share == 0.25
    assert norms[:, 0, 1] == pytest.approx(400, rel=0.02)
    assert far == 0


def test_mask_token_stands_for_masked_patches() -> None:
    options = {"features": 16, "num_heads": 2, "depth": 1, "image_size": 28, "patch_size": 14}
    model = zoo.create("vit_small_patch14_reg4_dinov2", mask_token=True, **options)
    images = np.ones((1, 28, 28, 3), np.float32)
    masked = np.zeros((1, 2, 2), bool)
    masked[0, 1, 0] = True
    whole, part = jax.jit(lambda: (model.embed(images), model.embed(images, masked)))()
    different = np.any(np.asarray(whole != part), axis=-1)[0]
    assert different.tolist() == [False] * 5 + [False, False, True, False]
    assert np.allclose(part[0, 7], model.mask_token[0] + model.position.table[1, 0], atol=1e-6)
    with pytest.raises(ValueError, match="mask_token=True"):
        zoo.create("vit_small_patch14_reg4_dinov2", **options).embed(images, masked)


def test_a_head_for_a_model_without_one() -> None:
    model = zoo.create("vit_small_patch14_dinov2", features=16, num_heads=2, depth=1, image_size=28, patch_size=14)
    assert model.head is None
    model.reset_head(5)
    assert jax.eval_shape(lambda x: model(x), np.zeros((1, 28, 28, 3), np.float32)).shape == (1, 5)
