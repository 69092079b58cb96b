"""ConvNeXt's releases for several sizes of image, and masks; test_timm_models.py compares it with timm."""

from __future__ import annotations

import numpy as np
import pytest

import zoo
from tests.references.comparing import relative
from tests.references.seeded import images
from zoo.weights import export

pytestmark = pytest.mark.full


def test_a_release_for_larger_images_makes_a_model_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """ConvNeXt of 224 and of 384 pixels are one model: the release says for which, unless the user does."""
    small = {"features": (8, 16), "depths": (1, 1), "num_classes": 0}
    state = {name: np.asarray(array) for name, array in export(zoo.create("convnext_tiny", **small)).items()}
    monkeypatch.setattr(
        "zoo.weights.open_source", lambda source: {name: _Tensor(array) for name, array in state.items()}
    )
    sizes = {
        tag: zoo.preprocess(zoo.create("convnext_tiny", weights=tag, **small)).image_size
        for tag in ("fb_in1k", "fb_in22k_ft_in1k_384")
    }
    assert sizes == {"fb_in1k": 224, "fb_in22k_ft_in1k_384": 384}
    asked = zoo.create("convnext_tiny", weights="fb_in22k_ft_in1k_384", image_size=320, **small)
    assert zoo.preprocess(asked).image_size == 320


class _Tensor:
    """A tensor of a file that is not there."""

    def __init__(self, array: np.ndarray):
        self.shape, self.array = array.shape, array

    def read(self) -> np.ndarray:
        return self.array


def test_masked_tokens_change_nothing() -> None:
    """A block on a part of a map, the rest masked, gives what it gives on that part alone."""
    block = zoo.create("convnext_mini", layer_scale=1.0).stages[0].blocks[0]
    x = images((2, 6, 7, 48), 1)
    padded = np.full((2, 9, 10, 48), np.nan, np.float32)
    padded[:, :6, :7] = x
    mask = np.zeros((2, 9, 10), bool)
    mask[:, :6, :7] = True
    assert relative(block(padded, mask)[:, :6, :7], block(x)) < 1e-6
