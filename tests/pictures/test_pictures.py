"""The reader of image files: every format, mode and fault, the same for training folders and for prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pictures
import zoo
from tasks.datasets.folder import Folder

RNG = np.random.default_rng(0)
COLORS = RNG.integers(0, 256, (20, 24, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", pictures.SUFFIXES)
def test_folders_and_prediction_read_the_same(tmp_path: Path, suffix: str) -> None:
    for name in ("cat", "dog"):
        for i in range(10):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(np.roll(COLORS, i, 0)).save(tmp_path / name / f"{i}{suffix}")
    folder = Folder(str(tmp_path))
    source = folder.source("train")
    image, _ = source[0]
    if suffix in (".png", ".tif", ".tiff", ".bmp"):
        assert any(np.array_equal(image, np.roll(COLORS, i, 0)) for i in range(10))
    prepare = zoo.Preprocess(image_size=16)
    np.testing.assert_array_equal(prepare(source.paths[0]), prepare(image))


def modes() -> dict[str, tuple[Image.Image, str, np.ndarray]]:
    """Image, ending, and what is read of it."""
    gray = COLORS[..., 0]
    rgba = np.concatenate([COLORS, COLORS[..., :1]], -1)
    ink = Image.fromarray(np.full((20, 24, 3), 51, np.uint8)).convert("CMYK")
    return {
        "gray": (Image.fromarray(gray), ".png", gray),
        "16 bits, PNG": (Image.fromarray(gray.astype(np.uint16) * 256 + 7), ".png", gray),
        "16 bits, TIFF": (Image.fromarray(gray.astype(np.uint16) * 256 + 7), ".tif", gray),
        "bits": (Image.fromarray(gray > 127), ".png", np.where(gray > 127, 255, 0)),
        "alpha, PNG": (Image.fromarray(rgba), ".png", COLORS),
        "alpha, TIFF": (Image.fromarray(rgba), ".tif", COLORS),
        "gray alpha": (Image.fromarray(rgba).convert("LA"), ".png", np.asarray(Image.fromarray(COLORS).convert("L"))),
        "palette": (Image.fromarray(np.full((20, 24, 3), 51, np.uint8)).convert("P"), ".png", np.full((20, 24, 3), 51)),
        "CMYK, TIFF": (ink, ".tif", np.asarray(ink.convert("RGB"))),
    }


@pytest.mark.parametrize("name", modes())
def test_modes(tmp_path: Path, name: str) -> None:
    image, suffix, want = modes()[name]
    image.save(tmp_path / f"a{suffix}")
    assert pictures.fault(tmp_path / f"a{suffix}") is None
    got = pictures.read(tmp_path / f"a{suffix}")
    assert got.mode == ("RGB" if want.ndim == 3 else "L")
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_orientation_is_followed(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(COLORS).save(tmp_path / f"a{suffix}", exif=exif)
    assert pictures.read(tmp_path / f"a{suffix}").size == (20, 24)


def test_a_photo_of_several_frames_is_its_first(tmp_path: Path) -> None:
    """Cameras write JPEG files with a preview behind the image, which Pillow calls MPO."""
    Image.fromarray(COLORS).save(
        tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.fromarray(255 - COLORS)]
    )
    assert pictures.fault(tmp_path / "a.jpg", thorough=False) is None
    off = [
        np.abs(np.asarray(pictures.read(tmp_path / "a.jpg")).astype(int) - frame).mean()
        for frame in (COLORS, 255 - COLORS)
    ]
    assert off[0] < off[1] / 2


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.ones((4, 4), np.float32), "floating point numbers"),
        (np.full((4, 4), 1 << 20, np.int32), "whole numbers from 1048576 to 1048576"),
    ],
)
def test_pixels_without_a_known_range_are_refused(tmp_path: Path, pixels: np.ndarray, message: str) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(
        ValueError, match=rf"a.tif can't be decoded: its pixels are {message}.*save it with 8 or 16 bits"
    ):
        pictures.read(tmp_path / "a.tif")
    assert message in str(pictures.fault(tmp_path / "a.tif", thorough=False))


@pytest.mark.parametrize("suffix", pictures.SUFFIXES)
def test_files_cut_short_are_noticed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(COLORS).save(path)
    assert pictures.fault(path, thorough=False) is None
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert pictures.fault(path, thorough=False)
    with pytest.raises(ValueError, match="can't be decoded"):
        pictures.read(path)


def test_a_decompression_bomb_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(COLORS).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(
        ValueError,
        match=r"a.png can't be decoded: it is too large to decode safely, make it smaller first \(.*480 pixels",
    ):
        pictures.read(tmp_path / "a.png")
    assert "too large" in str(pictures.fault(tmp_path / "a.png", thorough=False))


def test_other_formats_are_not_opened(tmp_path: Path) -> None:
    Image.fromarray(COLORS).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(ValueError, match="it is no JPEG, PNG, TIFF, WEBP or BMP file"):
        pictures.read(tmp_path / "a.png")
