"""Swin V2 against timm with random weights: logits, features, gradients, names, buffers, sizes, released checkpoints."""

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
    same_bits,
    timm,
    torch,
)
from tests.tiers import tiered
from zoo.registry import variant
from zoo.weights import export

pytestmark = pytest.mark.reference

TOLERANCE = 5e-5  # a scale of 100 makes the softmax so sharp that rounding shows: 1e-5 in the gradient
PIXELS = 64  # maps of 16x16, 8x8 and 4x4 tokens, in windows of 4x4
SMALL: dict[str, Any] = {
    "features": (16, 32, 64),
    "depths": (2, 2, 2),
    "num_heads": (2, 2, 4),
    "image_size": PIXELS,
    "num_classes": 10,
    "window": 4,
}
RELEASED = [name for name in zoo.list_models("swinv2_*") if variant(name).published]


def _pair(pixels: Any = PIXELS, pretrained: tuple[int, ...] | None = None) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """timm's model for images of ``pixels`` and ours, narrow and shallow, with the same random weights."""
    theirs = timm.create_model(
        "swinv2_tiny_window8_256",
        embed_dim=SMALL["features"][0],
        depths=SMALL["depths"],
        num_heads=SMALL["num_heads"],
        window_size=SMALL["window"],
        pretrained_window_sizes=pretrained or (0, 0, 0),
        img_size=pixels,
        num_classes=10,
    )
    state = randomize(theirs)
    with torch.no_grad():  # one scale that is at its limit
        theirs.layers[0].blocks[1].attn.logit_scale += 6
    state = {name: value.numpy().copy() for name, value in theirs.state_dict().items()}
    ours = zoo.create("swinv2_tiny_window8_256", **SMALL, pretrained_window=pretrained)
    ours.eval()
    return theirs, ours, state


def test_matches_timm(record_property: Any) -> None:
    assert_matches_timm("swinv2_tiny", _pair(), images(2, PIXELS, PIXELS, 3), record_property, tolerance=TOLERANCE)


def test_pretrained_windows_at_another_size_match_timm() -> None:
    theirs, ours, state = _pair((64, 128), pretrained=(3, 3, 2))
    zoo.load(ours, state)
    x = images(1, 64, 128, 3)
    assert relative(jax.jit(ours)(x), logits_of(theirs, x)) < TOLERANCE


def test_authors_names_and_buffers() -> None:
    theirs, ours, state = _pair(pretrained=(3, 3, 2))
    authors = {name.replace("head.fc", "head"): array for name, array in state.items()}
    for stage in (1, 2):
        authors = {
            name.replace(f"layers.{stage}.downsample", f"layers.{stage - 1}.downsample"): array
            for name, array in authors.items()
        }
    # timm alone keeps a bias of the keys, of zeros.
    buffers = {name: value.numpy() for name, value in theirs.named_buffers() if not name.endswith("k_bias")}
    assert {name.rpartition(".")[2] for name in buffers} == {
        "relative_coords_table",
        "relative_position_index",
        "attn_mask",
    }
    zoo.load(ours, {**authors, **buffers})
    assert same_bits(export(ours, naming="timm"), state)
    found = export(ours, naming="microsoft")
    for name in [name for name in buffers if name.endswith("coords_table")]:
        np.testing.assert_allclose(found.pop(name), buffers.pop(name), rtol=1e-6)
    assert same_bits(found, {**authors, **buffers})


@pytest.mark.full
def test_whole_model_matches_timm(tmp_path: Any) -> None:
    """Not reduced, and through a file that timm's own code loads."""
    assert_whole_model_matches_timm(
        "swinv2_tiny_window16_256", tmp_path / "model.safetensors", size=256, tolerance=TOLERANCE
    )


@pytest.mark.parametrize("name", tiered(RELEASED, lambda name: name == "swinv2_base_window12to16_192to256"))
def test_names_sizes_and_releases_are_those_of_timm(name: str) -> None:
    """Of every variant, without allocating it."""
    from timm.models.swin_transformer_v2 import default_cfgs

    assert_listed_as_by_timm(name, name, default_cfgs)
    config: Any = variant(name).config
    with torch.device("meta"):
        theirs = timm.create_model(name)
    attention = [block.attn for stage in theirs.layers for block in stage.blocks]
    windows = [config.pretrained_window_of(stage) for stage, depth in enumerate(config.depths) for _ in range(depth)]
    assert windows == [a.pretrained_window_size if a.pretrained_window_size[0] else a.window_size for a in attention]


def test_variants_are_those_of_timm() -> None:
    assert set(RELEASED) == {name for name in timm.list_models("swinv2_*") if not name.startswith("swinv2_cr")}
