"""Augmentation of single images: shapes, ranges, determinism, and that each option does what it says."""

import dataclasses
import time

import numpy as np
import pytest
from PIL import Image

from tasks.augment import Augment, Transform, crop_box
from tasks.rand_augment import OPERATIONS, RandAugment, Settings


def picture(width=40, height=30, mode="RGB", seed=0):
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


EVERYTHING = {
    "crop": Augment(
        rotation=9, translation=0.1, zoom=0.2, shear=0.1, color_jitter=0.4, rand_augment="rand-m9-mstd0.5-inc1"
    )
}
EVERYTHING["whole"] = dataclasses.replace(EVERYTHING["crop"], fit="whole")


@pytest.mark.parametrize("fit", ["crop", "whole"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_and_dtype_and_purity(fit, mode, channels, preprocess, gray):
    transform = Transform(EVERYTHING[fit], gray if channels == 1 else preprocess)
    image = picture(mode=mode)
    before = np.asarray(image).copy()
    forms = [transform.to_array(transform.fitted(image))]
    forms += [transform.to_array(transform.varied(image, np.random.default_rng(seed))) for seed in (1, 1, 2)]
    assert all(form.shape == (32, 32, channels) and form.dtype == np.uint8 for form in forms)
    assert np.array_equal(forms[1], forms[2])
    assert not np.array_equal(forms[1], forms[3])
    assert np.array_equal(np.asarray(image), before)


def test_gray_is_repeated_and_color_is_weighed(preprocess, gray):
    repeated = Transform(Augment(fit="whole"), preprocess)
    array = repeated.to_array(repeated.fitted(picture(mode="L")))
    assert np.array_equal(array[..., 0], array[..., 2])
    green = Image.new("RGB", (9, 9), (0, 255, 0))
    weighed = Transform(Augment(), gray)
    assert np.all(weighed.to_array(weighed.fitted(green)) == 150)  # ITU-R 601: 0.587


def test_the_evaluation_crop_is_the_center(preprocess):
    transform = Transform(
        Augment(), dataclasses.replace(preprocess, image_size=7, crop_fraction=0.7, interpolation="nearest")
    )
    ramp = np.add.outer(np.arange(10) * 20, np.arange(16)).astype(np.uint8)
    expected = np.asarray(Image.fromarray(ramp).resize((7, 7), Image.Resampling.NEAREST, box=(4.5, 1.5, 11.5, 8.5)))
    assert np.array_equal(transform.to_array(transform.fitted(Image.fromarray(ramp)))[..., 0], expected)
    assert set((expected % 20).ravel().tolist()) <= set(range(4, 12))


def test_squashed_images_keep_nothing_of_their_proportions(preprocess):
    transform = Transform(
        Augment(),
        dataclasses.replace(preprocess, image_size=8, crop_fraction=0.5, crop_mode="squash", interpolation="nearest"),
    )
    image = picture(32, 16)
    assert np.array_equal(transform.fitted(image), image.resize((8, 8), Image.Resampling.NEAREST, box=(8, 4, 24, 12)))
    with pytest.raises(ValueError, match="crop_mode is 'center' or 'squash', not 'border'"):
        Transform(Augment(), dataclasses.replace(preprocess, crop_mode="border"))


def test_nothing_varied_is_the_evaluation_form(preprocess):
    transform = Transform(Augment(fit="whole", flip=0.0), preprocess)
    image = picture()
    assert np.array_equal(transform.varied(image, np.random.default_rng(0)), transform.fitted(image))


def test_flip(preprocess):
    image = picture(32, 32)
    flipped = Transform(Augment(fit="whole", flip=1.0), preprocess).varied(image, np.random.default_rng(0))
    assert np.array_equal(np.asarray(flipped), np.asarray(image)[:, ::-1])


class Extreme:
    """A generator whose five numbers for an affine map are given."""

    def __init__(self, numbers):
        self.numbers = (np.asarray(numbers) + 1) / 2

    def random(self, size=None):
        return self.numbers


def test_rotation_and_translation_are_exact_where_they_can_be(preprocess):
    image = picture(32, 32)
    turned = Transform(Augment(fit="whole", flip=0, rotation=90), preprocess).varied(image, Extreme([1, 0, 0, 0, 0]))
    quarter = np.rot90(np.asarray(image), -1).astype(int)
    assert np.abs(np.asarray(turned) - quarter).max() <= 1  # Pillow cuts off fractions
    moved = np.asarray(
        Transform(Augment(fit="whole", flip=0, translation=0.25), preprocess).varied(image, Extreme([0, 1, 0.5, 0, 0]))
    )
    assert np.array_equal(moved[:-4, :-8], np.asarray(image)[4:, 8:])
    assert not moved[:, -8:].any()
    assert not moved[-4:].any()


def test_zoom_keeps_the_center_and_enlarges(preprocess):
    disc = Image.fromarray((np.hypot(*np.mgrid[-15.5:16, -15.5:16]) < 8).astype(np.uint8) * 255)
    transform = Transform(Augment(fit="whole", flip=0, zoom=0.5), preprocess)
    larger = np.asarray(transform.varied(disc, Extreme([0, 0, 0, 1, 0])), float)
    smaller = np.asarray(transform.varied(disc, Extreme([0, 0, 0, -1, 0])), float)
    assert larger.sum() / np.asarray(disc, float).sum() == pytest.approx(1.5**2, rel=0.05)
    assert smaller.sum() / np.asarray(disc, float).sum() == pytest.approx(1.5**-2, rel=0.05)
    assert np.average(np.arange(32), weights=larger.sum(0)) == pytest.approx(15.5, abs=0.05)


def test_crops_lie_inside_and_have_the_asked_area_and_shape():
    rng = np.random.default_rng(0)
    boxes = np.array([crop_box(400, 300, (0.08, 1.0), (3 / 4, 4 / 3), rng) for _ in range(2000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 400
    assert boxes[:, 3].max() <= 300
    area, aspect = width * height / 120_000, width / height
    assert 0.078 < area.min() < 0.1
    assert area.max() > 0.9
    assert aspect.min() > 0.73
    assert aspect.max() < 1.36


def test_a_crop_that_never_fits_falls_back_to_the_center():
    assert crop_box(1000, 10, (1.0, 1.0), (3 / 4, 4 / 3), np.random.default_rng(0)) == (493, 0, 506, 10)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("level", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_every_operation_keeps_size_and_mode(name, mode, level, sign):
    image = picture(mode=mode)
    fill = 100 if mode == "L" else (124, 116, 104)
    result = OPERATIONS[name](image, Settings(level, sign, Image.Resampling.BICUBIC, fill))
    assert (result.size, result.mode) == (image.size, image.mode)


def test_levels_are_those_of_the_increasing_set():
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))

    def values(name, level, sign=1):
        return np.asarray(OPERATIONS[name](ramp, Settings(level, sign, Image.Resampling.NEAREST, 0))).ravel()

    i = np.arange(256)
    assert np.array_equal(values("posterize", 0.5), i & 0b11000000)  # two bits are kept
    assert not values("posterize", 1.0).any()
    assert np.array_equal(values("solarize", 0.5), np.where(i < 128, i, 255 - i))
    assert np.array_equal(values("solarize_add", 0.5), np.where(i < 128, np.minimum(255, i + 55), i))
    assert np.array_equal(values("brightness", 1.0, -1), (i * 0.1).astype(int))
    assert np.array_equal(values("brightness", 0.0), i)
    moved = values("translate_x", 1.0).reshape(16, 16)
    assert np.array_equal(moved[:, :9], i.reshape(16, 16)[:, 7:])  # 0.45 of 16, to the nearest pixel
    assert not moved[:, 9:].any()


def test_the_policy_applies_half_of_its_operations():
    policy = RandAugment.parse("rand-m9-mstd0.5-inc1")
    assert policy == RandAugment(magnitude=9, layers=2, spread=0.5, probability=0.5)
    assert RandAugment.parse("rand-m7-n3-p0.25-inc1") == RandAugment(magnitude=7, layers=3, spread=0, probability=0.25)
    image, rng = picture(), np.random.default_rng(0)
    unchanged = np.mean([np.array_equal(policy(image, rng, 0), image) for _ in range(400)])
    assert 0.2 < unchanged < 0.42  # a quarter, and a little: some operations leave some images alone


@pytest.mark.parametrize("text", ["rand-m9", "rand-m9-inc0", "rand-m9-inc1-x3", "auto-m9-inc1", "rand-mx-inc1", "9"])
def test_other_policies_are_refused(text):
    with pytest.raises(ValueError, match="rand_augment is written"):
        RandAugment.parse(text)


def test_jitter_and_options(preprocess):
    image = picture()
    changed = Transform(Augment(fit="whole", flip=0, color_jitter=0.4), preprocess).varied(
        image, np.random.default_rng(0)
    )
    assert not np.array_equal(np.asarray(changed), np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)))
    with pytest.raises(ValueError, match="fit is 'crop' or 'whole'"):
        Augment(fit="squash")
    with pytest.raises(ValueError, match="interpolation is one of"):
        Transform(Augment(), dataclasses.replace(preprocess, interpolation="lanczos4"))


def test_small_images_are_varied_fast(preprocess):
    transform = Transform(Augment(fit="whole", flip=0, rotation=10, translation=0.1, zoom=0.1, shear=0.1), preprocess)
    image = picture(32, 32, mode="L")

    def rate():
        start = time.thread_time()
        for seed in range(500):
            transform.to_array(transform.varied(image, np.random.Generator(np.random.Philox(key=[seed, 0]))))
        return 500 / (time.thread_time() - start)

    assert (
        max(rate() for _ in range(5)) > 5000
    )  # examples a second of one thread's own time, whatever else the machine does
