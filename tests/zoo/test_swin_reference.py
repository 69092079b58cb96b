"""Swin against timm and transformers with random weights: logits, features, gradients, names, buffers, sizes, released
checkpoints.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import zoo
from tests.references.live import (
    assert_listed_as_by_timm,
    assert_matches_timm,
    assert_whole_model_matches_timm,
    images,
    logits_of,
    randomize,
    relative,
    released,
    same_bits,
    timm,
    torch,
)
from tests.tiers import tiered
from zoo.registry import variant
from zoo.sources import WeightsError
from zoo.weights import export

pytestmark = pytest.mark.reference

TOLERANCE = 5e-6
PIXELS = 64  # maps of 16x16, 8x8 and 4x4 tokens, in windows of 4x4
SMALL: dict[str, Any] = {
    "features": (16, 32, 64),
    "depths": (2, 2, 2),
    "num_heads": (2, 2, 4),
    "image_size": PIXELS,
    "num_classes": 10,
    "window": 4,
}
RELEASED = [name for name in zoo.list_models("swin_*") if variant(name).published]


def _pair(pixels: int = PIXELS) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """timm's model for images of ``pixels`` and ours, narrow and shallow, with the same random weights."""
    theirs = timm.create_model(
        "swin_tiny_patch4_window7_224",
        embed_dim=SMALL["features"][0],
        depths=SMALL["depths"],
        num_heads=SMALL["num_heads"],
        window_size=SMALL["window"],
        img_size=pixels,
        num_classes=10,
    )
    state = randomize(theirs)
    ours = zoo.create("swin_tiny_patch4_window7_224", **SMALL)
    ours.eval()
    return theirs, ours, state


def test_matches_timm(record_property: Any) -> None:
    assert_matches_timm("swin_tiny", _pair(), images(2, PIXELS, PIXELS, 3), record_property, tolerance=TOLERANCE)


@pytest.mark.parametrize("shape", [(128, 128), (64, 128)])
def test_other_sizes_match_timm(shape: tuple[int, int]) -> None:
    """A model made for another size moves the windows of the last stage too, where they do not cover the map."""
    theirs, ours, state = _pair(shape)
    zoo.load(ours, state)
    x = images(1, *shape, 3)
    assert relative(jax.jit(ours)(x), logits_of(theirs, x)) < TOLERANCE


def test_authors_names_and_buffers() -> None:
    """The authors merge tokens at the end of a stage and keep constants, which timm computes as they do."""
    theirs, ours, state = _pair()
    authors = {name.replace("head.fc", "head"): array for name, array in state.items()}
    for stage in (1, 2):
        authors = {
            name.replace(f"layers.{stage}.downsample", f"layers.{stage - 1}.downsample"): array
            for name, array in authors.items()
        }
    buffers = {name: value.numpy() for name, value in theirs.named_buffers()}
    assert {name.rpartition(".")[2] for name in buffers} == {"relative_position_index", "attn_mask"}
    zoo.load(ours, authors)
    assert same_bits(export(ours, naming="microsoft"), {**authors, **buffers})
    assert same_bits(export(zoo.load(ours, {**authors, **buffers}), naming="timm"), state)
    name = "layers.0.blocks.1.attn_mask"
    with pytest.raises(WeightsError, match=f"{name} of the dictionary is not what the model computes"):
        zoo.load(ours, {**authors, name: -buffers[name]})
    # timm's files of before have them too.
    zoo.load(ours, {**state, **buffers})


@pytest.mark.full
def test_matches_transformers(tmp_path: Any) -> None:
    """Also where windows do not divide the map, which is padded before they are moved."""
    transformers = pytest.importorskip("transformers")
    options = {
        "embed_dim": 16,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": 4,
        "patch_size": 4,
        "num_labels": 10,
    }
    theirs = transformers.SwinForImageClassification(transformers.SwinConfig(image_size=64, **options))
    randomize(theirs)
    state = released(theirs, tmp_path)
    ours = zoo.create(
        "swin_tiny_patch4_window7_224", **{**SMALL, "features": (16, 32), "depths": (2, 2), "num_heads": (2, 4)}
    )
    zoo.load(ours, tmp_path)
    assert same_bits(export(ours, naming="transformers"), state)
    for shape in ((64, 64), (44, 84)):
        x = images(1, *shape, 3)
        with torch.no_grad():
            logits = theirs(
                torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), interpolate_pos_encoding=True
            ).logits.numpy()
        assert relative(jax.jit(ours)(x), logits) < TOLERANCE


@pytest.mark.full
def test_whole_model_matches_timm(tmp_path: Any) -> None:
    """Not reduced, and through a file that timm's own code loads."""
    assert_whole_model_matches_timm("swin_tiny_patch4_window7_224", tmp_path / "model.safetensors", tolerance=TOLERANCE)


@pytest.mark.parametrize("name", tiered(RELEASED, lambda name: name in (RELEASED[0], "swin_s3_tiny_224")))
def test_names_sizes_and_releases_are_those_of_timm(name: str) -> None:
    """Of every variant, without allocating it."""
    from timm.models.swin_transformer import default_cfgs

    assert_listed_as_by_timm(name, name, default_cfgs)


def test_variants_are_those_of_timm() -> None:
    assert set(RELEASED) == set(timm.list_models("swin_*"))


def test_other_window_resamples_the_tables() -> None:
    """At another size of image too, and from the authors' files, whose constants are then of other shapes."""
    _, made, state = _pair()
    zoo.load(made, state)
    authors = export(made, naming="microsoft")
    ours = zoo.create("swin_tiny_patch4_window7_224", **{**SMALL, "image_size": 96, "window": 6})
    with pytest.warns(
        UserWarning, match=r"bias.table and 5 more tables were made for a grid of 7x7 and are resampled to 11x11"
    ):
        zoo.load(ours, authors)
    theirs, _, _ = _pair()
    theirs.set_input_size(img_size=96, window_size=6)
    x = images(1, 96, 96, 3)
    assert relative(jax.jit(ours)(x), logits_of(theirs, x)) < TOLERANCE
