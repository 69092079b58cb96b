"""Image settings that small models need."""

import dataclasses

import pytest


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """What a small model wants of its images."""

    image_size: int = 32
    mean: tuple[float, ...] = (0.4, 0.5, 0.6)
    std: tuple[float, ...] = (0.2, 0.25, 0.3)
    interpolation: str = "bicubic"
    crop_fraction: float = 0.875
    crop_mode: str = "center"


@pytest.fixture
def preprocess():
    return Preprocess()


@pytest.fixture
def gray():
    return Preprocess(mean=(0.5,), std=(0.5,))
