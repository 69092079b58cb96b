"""zoo.predict: batches, padding, one compilation, clear refusals."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

import zoo
from zoo import prediction

IMAGES = np.random.default_rng(0).standard_normal((7, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> nnx.Module:
    return zoo.create(
        "biformer_nano", num_classes=5, drop_path=0.5, features=(8, 16), stem=(8,), depths=(1, 1), num_heads=(1, 2)
    )


def test_batches_do_not_matter(model: nnx.Module) -> None:
    whole = zoo.predict(model, IMAGES)
    assert whole.shape == (7, 5)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(zoo.predict(model, list(IMAGES), batch_size=3), whole, rtol=1e-4)
    model.eval()
    np.testing.assert_allclose(jax.nn.softmax(nnx.jit(lambda m: m(IMAGES))(model)), whole, rtol=1e-4)
    model.train()


def test_one_program_and_the_callers_mode_kept(model: nnx.Module) -> None:
    model.train()
    zoo.predict(model, IMAGES, batch_size=3)
    programs = prediction._probabilities._cache_size()
    zoo.predict(model, IMAGES[:5], batch_size=3)
    assert prediction._probabilities._cache_size() == programs
    assert not model.stages[0].blocks[0].mixer_drop.deterministic


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[0], r"must be \(count, height, width, channels\)"),
        (IMAGES[:0], "at least one image"),
        ([IMAGES[0], IMAGES[0, :8]], "must have one size"),
        ((IMAGES * 255).astype(np.uint8), "normalized floating point.*zoo.preprocess"),
        (IMAGES[..., :1], "takes images of 3 channels, got 1"),
    ],
)
def test_refusals(model: nnx.Module, images: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zoo.predict(model, images)


def test_size_that_patches_do_not_divide() -> None:
    with pytest.raises(ValueError, match="15x16 can't be cut into 4x4 patches: both sides must be divisible by 4"):
        zoo.predict(zoo.create("vit_nano_patch4_32", depth=1), IMAGES[:, :15])


def test_headless() -> None:
    with pytest.raises(ValueError, match="reset_head"):
        zoo.predict(zoo.create("vit_nano_patch4_32", depth=1, num_classes=0), IMAGES)


def test_normalizing_pixels():
    preprocess = zoo.Preprocess(image_size=2, mean=(0.5, 0.0, 1.0), std=(0.5, 1.0, 2.0))
    pixels = np.zeros((1, 2, 2, 3), np.uint8)
    pixels[..., 0] = 255
    normalized = preprocess.normalize(pixels)
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized[0, 0, 0], [1.0, 0.0, -0.5])
    with pytest.raises(ValueError, match="must be uint8"):
        preprocess.normalize(normalized)
