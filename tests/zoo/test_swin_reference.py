"""Swin at other sizes, its authors' names and constants, and beside transformers; test_timm_models.py compares the rest
with timm.
"""

from __future__ import annotations

from typing import Any

import jax
import pytest

import zoo
from tests.references.live import images, logits_of, randomize, relative, released, same_bits, torch
from tests.references.timm_models import pair
from zoo.sources import WeightsError
from zoo.weights import export

pytestmark = pytest.mark.reference

TOLERANCE = 5e-6
NAME = "swin_tiny_patch4_window7_224"


@pytest.mark.parametrize("shape", [(64, 64), (32, 64)])
def test_other_sizes_match_timm(shape: tuple[int, int]) -> None:
    """A model made for another size moves the windows of the last stage too, where they do not cover the map."""
    theirs, ours, state = pair(NAME, {"img_size": shape})
    zoo.load(ours, state)
    x = images(1, *shape, 3)
    assert relative(jax.jit(ours)(x), logits_of(theirs, x)) < TOLERANCE


def test_authors_names_and_buffers() -> None:
    """The authors merge tokens at the end of a stage and keep constants, which timm computes as they do."""
    theirs, ours, state = pair(NAME)
    authors = {name.replace("head.fc", "head"): array for name, array in state.items()}
    authors = {name.replace("layers.1.downsample", "layers.0.downsample"): array for name, array in authors.items()}
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
    """Where windows do not divide the map, which is padded before they are moved."""
    transformers = pytest.importorskip("transformers")
    options = {
        "embed_dim": 16,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": 4,
        "patch_size": 4,
        "num_labels": 10,
    }
    theirs = transformers.SwinForImageClassification(transformers.SwinConfig(image_size=32, **options))
    randomize(theirs)
    state = released(theirs, tmp_path)
    _, ours, _ = pair(NAME)
    zoo.load(ours, tmp_path)
    assert same_bits(export(ours, naming="transformers"), state)
    x = images(1, 44, 84, 3)
    with torch.no_grad():
        logits = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), interpolate_pos_encoding=True).logits.numpy()
    assert relative(jax.jit(ours)(x), logits) < TOLERANCE


def test_other_window_resamples_the_tables() -> None:
    """At another size of image too, and from the authors' files, whose constants are then of other shapes."""
    _, made, state = pair(NAME)
    zoo.load(made, state)
    authors = export(made, naming="microsoft")
    ours = pair(NAME, ours={"image_size": 48, "window": 6})[1]
    with pytest.warns(
        UserWarning, match=r"bias.table and 3 more tables were made for a grid of 7x7 and are resampled to 11x11"
    ):
        zoo.load(ours, authors)
    theirs, _, _ = pair(NAME)
    theirs.set_input_size(img_size=48, window_size=6)
    x = images(1, 48, 48, 3)
    assert relative(jax.jit(ours)(x), logits_of(theirs, x)) < TOLERANCE
