"""Mixup, CutMix and random erasing: targets, areas, probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.mixing import Mixing, erase, mix, smoothed

LABELS = jnp.asarray([0, 1, 2, 3, 4, 5])


def batch():
    """Six images, each of one value: its position."""
    return jnp.broadcast_to(jnp.arange(6.0)[:, None, None, None], (6, 20, 16, 3)), smoothed(LABELS, 7, 0.0)


def draws(mixing, n=60):
    images, targets = batch()
    mixed = jax.jit(jax.vmap(lambda key: mix(images, targets, mixing, key)))
    return [np.asarray(x) for x in mixed(jax.random.split(jax.random.key(0), n))]


def test_smoothing_is_over_all_classes():
    targets = np.asarray(smoothed(LABELS, 10, 0.1))
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.unique(targets), [0.01, 0.91], rtol=1e-6)


@pytest.mark.parametrize("mode", ["batch", "element"])
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_targets_say_what_is_in_the_images(mode, mixup, cutmix):
    images, targets = draws(Mixing(mixup=mixup, cutmix=cutmix, mode=mode))
    np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-5)
    values = images.mean(axis=(2, 3, 4))  # of image i: lam * i + (1 - lam) * (5 - i)
    np.testing.assert_allclose(targets[..., :6] @ np.arange(6.0), values, atol=1e-4)
    kept = targets[:, np.arange(6), np.arange(6)]
    assert kept.min() < 0.5 < kept.max()
    assert (np.ptp(kept, axis=1) < 1e-5).all() == (mode == "batch")


def test_cutmix_pastes_one_box():
    images, targets = draws(Mixing(cutmix=1.0))
    for sample, target in zip(images, targets):
        foreign = sample[0, ..., 0] != 0
        rows, columns = foreign.any(1).sum(), foreign.any(0).sum()
        assert foreign.sum() == rows * columns
        assert target[0, 0] == pytest.approx(1 - foreign.mean(), abs=1e-6)


def test_switch_chooses_between_the_two():
    images, _ = draws(Mixing(mixup=1.0, cutmix=1.0, switch=0.25), n=400)
    values = images[:, 0, :, :, 0]
    cut = np.isin(values, (0, 5)).all(axis=(1, 2))
    assert 0.15 < cut.mean() < 0.35


def test_probability_leaves_batches_alone():
    images, targets = draws(Mixing(mixup=1.0, cutmix=1.0, probability=0.5), n=400)
    alone = (targets[:, 0, 0] == 1) & (images[:, 0] == 0).all(axis=(1, 2, 3))
    assert 0.4 < alone.mean() < 0.62


def test_off_is_off_and_an_odd_batch_works():
    images, targets = batch()
    for mixing in (Mixing(), Mixing(mixup=0.8, probability=0.0)):
        same = jax.jit(lambda key, mixing=mixing: mix(images, targets, mixing, key))(jax.random.key(0))
        assert all(np.array_equal(a, b) for a, b in zip(same, (images, targets)))
    one = jax.jit(lambda key: mix(images[:1], targets[:1], Mixing(cutmix=1.0), key))(jax.random.key(0))
    np.testing.assert_allclose(one[0], images[:1], atol=1e-6)
    with pytest.raises(ValueError, match="mode is 'batch' or 'element'"):
        Mixing(mode="pair")


def test_erasing_fills_one_box_with_noise():
    images = jnp.full((400, 24, 32, 3), 9.0)
    erased = np.asarray(jax.jit(lambda key: erase(images, 0.25, key))(jax.random.key(1)))
    changed = (erased != 9).any(-1)
    touched = changed.any(axis=(1, 2))
    assert 0.18 < touched.mean() < 0.32
    for image in changed[touched]:
        assert image.sum() == image.any(0).sum() * image.any(1).sum()
    share = changed[touched].mean(axis=(1, 2))
    assert share.min() > 0.01
    assert share.max() < 0.36
    noise = erased[changed]
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05


def test_no_erasing():
    images, _ = batch()
    assert erase(images, 0.0, jax.random.key(0)) is images
