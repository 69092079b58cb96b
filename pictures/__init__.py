"""The one reader of image files, in the formats that Pillow decodes itself: upright, 8 bits per channel, gray or RGB.

Training folders and prediction both use it, so that a model sees a photo as it did in training:

- it is rotated by its EXIF orientation;
- CMYK and palette colors become RGB; an alpha channel is dropped, and the color under it is kept;
- 16-bit values keep their upper 8 bits; gray stays gray;
- of a file with several frames the first is read.

Formats that need another program (EPS) or that most builds of Pillow lack (HEIC) are not supported.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, features

_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
}
FORMATS = tuple(name for name in _SUFFIXES if name != "WEBP" or features.check("webp"))
"""Pillow's names of the supported formats."""
SUFFIXES = tuple(suffix for name in FORMATS for suffix in _SUFFIXES[name])
"""Lower-case file suffixes of these formats."""


def upright(image: Image.Image) -> Image.Image:
    """Decodes an image, applies its EXIF orientation, and converts it to gray ("L") or "RGB", 8 bits per channel.

    Raises:
      ValueError: pixels without a known range: floating point numbers, or integers beyond 16 bits.
      OSError: the image can't be decoded.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow's convert would clip
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() >= 1 << 16:
            raise ValueError(
                f"its pixels are whole numbers from {values.min()} to {values.max()}: save it with 8 or 16 bits"
            )
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floating point numbers, whose range is unknown: save it with 8 or 16 bits")
    return image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB")


def read(path: str | os.PathLike[str]) -> Image.Image:
    """Reads an image file and converts it by :func:`upright`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not in a supported format, is damaged, or has more than twice
        ``PIL.Image.MAX_IMAGE_PIXELS`` pixels, Pillow's limit.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no image {path}")
    try:
        with Image.open(path, formats=FORMATS) as image:
            return upright(image)
    except Exception as error:  # decoders raise exceptions of many types
        raise ValueError(f"{path} can't be decoded: {reason(error)}") from error


def reason(error: Exception) -> str:
    """One line on why an image was not read."""
    if isinstance(error, Image.UnidentifiedImageError):
        return f"it is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"
    if isinstance(error, Image.DecompressionBombError):
        return f"it is too large to decode safely, make it smaller first ({' '.join(str(error).split())})"
    return " ".join(str(error).split()) or type(error).__name__


def fault(path: Path, smallest: int = 1, thorough: bool = True) -> str | None:
    """Returns what is wrong with an image file, or None.

    Decoding a whole file is expensive. Unless ``thorough``, only files without their format's end marker (an
    interrupted download) or with pixels of another depth are decoded, and damage in the middle of a file is not
    detected.

    Args:
      path: the file.
      smallest: the smallest allowed width and height, in pixels.
      thorough: decode every file.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if min(image.size) < smallest:
                return f"{image.width}x{image.height} pixels, under {smallest}"
            if thorough or image.mode.startswith(("I", "F")) or not _ended(path):
                upright(image)
    except Exception as error:
        return reason(error)
    return None


def _ended(path: Path) -> bool:
    """Whether a file ends as its format prescribes; False for formats without an end marker."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(12)
        file.seek(max(0, size - 1024))
        tail = file.read()
    if head.startswith(b"\xff\xd8"):
        return b"\xff\xd9" in tail
    if head.startswith(b"\x89PNG"):
        return b"IEND" in tail
    return head.startswith(b"RIFF") and int.from_bytes(head[4:8], "little") + 8 <= size
