"""ConvNeXt against timm with random weights: logits, features, gradients, names, sizes, released checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import zoo
from tests.references.live import (
    assert_listed_as_by_timm,
    assert_matches_timm,
    assert_whole_model_matches_timm,
    images,
    randomize,
    relative,
    same_bits,
    timm,
    torch,
)
from tests.tiers import tiered
from zoo.registry import variant
from zoo.weights import export

pytestmark = pytest.mark.reference

TOLERANCE = 5e-6
RELEASED = [name for name in zoo.list_models("convnext*") if variant(name).published]
FEATURES, DEPTHS = (8, 16, 24, 32), (1, 2, 1, 1)


def _small_pair(name: str) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """timm's model and ours, narrow and shallow, with the same random weights."""
    theirs = timm.create_model(name, dims=FEATURES, depths=DEPTHS, num_classes=10)
    stem = {"stem": (8, 8)} if name.endswith("_ols") else {}
    ours = zoo.create(name, features=FEATURES, depths=DEPTHS, num_classes=10, **stem)
    return theirs, ours, randomize(theirs)


@pytest.mark.parametrize("name", ["convnext_tiny", pytest.param("convnext_atto_ols", marks=pytest.mark.full)])
def test_matches_timm(name: str, record_property: Any) -> None:
    """On a map of odd sides, of which 2x2 convolutions leave out the last row and column."""
    assert_matches_timm(name, _small_pair(name), images(2, 92, 76, 3), record_property, tolerance=TOLERANCE)


def test_the_authors_names_are_read_as_by_timm() -> None:
    """A file of ours under the authors' names, through timm's own converter."""
    from timm.models.convnext import checkpoint_filter_fn

    theirs, ours, state = _small_pair("convnext_tiny")
    zoo.load(ours, state)
    released = export(ours, naming="facebook")
    converted = checkpoint_filter_fn({name: torch.from_numpy(array.copy()) for name, array in released.items()}, theirs)
    assert same_bits({name: value.numpy() for name, value in converted.items()}, state)
    again = zoo.create("convnext_tiny", features=FEATURES, depths=DEPTHS, num_classes=10, weights=released)
    assert same_bits(export(again, naming="facebook"), released)


@pytest.mark.full
def test_whole_model_matches_timm(tmp_path: Any) -> None:
    """Not reduced, and through a file that timm's own code loads."""
    assert_whole_model_matches_timm("convnext_tiny", tmp_path / "model.safetensors", tolerance=TOLERANCE)


@pytest.mark.parametrize("name", tiered(RELEASED, lambda name: name == "convnext_atto"))
def test_names_sizes_and_releases_are_those_of_timm(name: str) -> None:
    from timm.models.convnext import default_cfgs

    assert_listed_as_by_timm(name, name, default_cfgs)


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
    x = images(2, 6, 7, 48)
    padded = np.full((2, 9, 10, 48), np.nan, np.float32)
    padded[:, :6, :7] = x
    mask = np.zeros((2, 9, 10), bool)
    mask[:, :6, :7] = True
    assert relative(block(padded, mask)[:, :6, :7], block(x)) < 1e-6
