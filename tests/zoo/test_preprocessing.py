"""From files to predictions: images of any size, one or many, and what a run keeps for its use without its data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import zoo

RNG = np.random.default_rng(0)
NAME, SMALL = "vit_nano_patch4_32", {"num_classes": 3, "depth": 1}


@pytest.fixture(scope="module")
def model() -> nnx.Module:
    return zoo.create(NAME, **SMALL)


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8))


def test_images_of_any_size_and_kind_become_one_batch(tmp_path: Path) -> None:
    prepare = zoo.Preprocess(image_size=16, mean=(0.5,) * 3, std=(0.25,) * 3)
    path = tmp_path / "a.png"
    picture(40, 24).save(path)
    batch = prepare(
        [str(path), path, picture(16, 16), picture(30, 20, "L"), RNG.integers(0, 256, (20, 18, 3), dtype=np.uint8)]
    )
    assert (batch.shape, batch.dtype) == ((5, 16, 16, 3), np.float32)
    np.testing.assert_array_equal(batch[0], batch[1])
    np.testing.assert_array_equal(batch[3, ..., 0], batch[3, ..., 2])  # gray
    assert prepare(path).shape == (1, 16, 16, 3)


def test_the_whole_square_is_kept_where_nothing_is_cropped() -> None:
    image = picture(8, 8)
    prepare = zoo.Preprocess(image_size=8, mean=(0.0,) * 3, std=(1.0,) * 3, crop_fraction=1.0)
    np.testing.assert_allclose(prepare(image)[0] * 255, np.asarray(image), atol=1e-4)


def test_orientation_is_followed_and_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    upright = picture(6, 10)
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # the viewer turns it by 90 degrees clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    prepare = zoo.Preprocess(image_size=6, crop_fraction=1.0)
    np.testing.assert_array_equal(prepare(tmp_path / "turned.png"), prepare(upright))
    deep = Image.fromarray((np.asarray(upright.convert("L")).astype(np.uint16) << 8) + 7)
    np.testing.assert_array_equal(prepare(deep), prepare(upright.convert("L")))


def test_files_are_predicted_and_named(model: nnx.Module, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        picture(20 + 5 * i, 30).save(path)
    found = zoo.predict(model, paths, top_k=2, batch_size=2)
    assert [len(row) for row in found] == [2, 2, 2]
    probabilities = zoo.predict(model, zoo.preprocess(model)(paths))
    for row, want in zip(found, probabilities, strict=True):
        assert [name for name, _ in row] == [f"class {i}" for i in np.argsort(-want)[:2]]
        np.testing.assert_allclose([p for _, p in row], np.sort(want)[::-1][:2], rtol=1e-5)
    assert zoo.predict(model, str(paths[0])).shape == (1, 3)


def test_bad_files(model: nnx.Module, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text.png can't be decoded: it is no JPEG, PNG, TIFF, WEBP or BMP file"):
        zoo.predict(model, [tmp_path / "text.png"])
    with pytest.raises(FileNotFoundError, match="there is no image"):
        zoo.predict(model, str(tmp_path / "none.png"))
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        zoo.predict(model, picture(9, 9), top_k=0)


def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    picture(64, 64).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="too large to decode safely"):
        zoo.Preprocess(image_size=8)(tmp_path / "large.png")


@pytest.mark.parametrize("name", ["biformer_nano", "vit_nano_patch4_32"])
def test_raw_images_and_single_ones_are_refused_with_the_remedy(name: str) -> None:
    model = zoo.create(name, **({"depth": 1} if name.startswith("vit") else {}))
    size = zoo.preprocess(model).image_size
    with pytest.raises(
        ValueError, match=r"normalized floating point images, got uint8: zoo.preprocess\(model\)\(images\)"
    ):
        model(np.zeros((1, size, size, 3), np.uint8))
    with pytest.raises(ValueError, match=r"a batch axis in front: image\[None\]"):
        model(np.zeros((size, size, 3), np.float32))


def test_models_are_made_in_evaluation_mode() -> None:
    model = zoo.create("biformer_nano", num_classes=3, drop_path=0.5)
    assert model.stages[0].blocks[0].mixer_drop.deterministic
    model.train()
    zoo.load(model, zoo.weights.export(zoo.create("biformer_nano", num_classes=3), naming="zoo"), naming="zoo")
    assert model.stages[0].blocks[0].mixer_drop.deterministic


def test_a_run_is_a_model_by_itself(tmp_path: Path) -> None:
    """With what the run wrote down, neither its data nor its config is needed."""
    trained = zoo.create(NAME, **SMALL, rngs=nnx.Rngs(1))
    zoo.save(trained, tmp_path / "model.safetensors", naming="zoo")
    record = {"model": NAME, "options": SMALL, "class_names": ["cat", "dog", "owl"]}
    (tmp_path / "model.json").write_text(json.dumps({**record, "preprocess": {"image_size": 24, "crop_fraction": 1.0}}))
    model = zoo.create(weights=tmp_path)
    assert zoo.preprocess(model).image_size == 24
    (row,) = zoo.predict(model, picture(40, 30), top_k=3)
    assert {name for name, _ in row} == {"cat", "dog", "owl"}
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(zoo.WeightsError, match=r"model.json is damaged"):
        zoo.create(weights=tmp_path)


def test_a_model_needs_a_name_or_a_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs the name of a model, or weights= the working directory"):
        zoo.create(weights=tmp_path)
    with pytest.raises(ValueError, match=r"there are no weights at .*absent; the name of a released checkpoint needs"):
        zoo.create(weights=tmp_path / "absent")


def test_a_model_of_text_has_none() -> None:
    with pytest.raises(ValueError, match="t5_nano takes no images"):
        zoo.preprocess("t5_nano")
