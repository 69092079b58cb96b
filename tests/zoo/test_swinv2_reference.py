"""Swin V2's windows of pre-training, and its authors' names and constants, beside timm's; test_timm_models.py compares
the rest.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import zoo
from tests.references.live import images, logits_of, relative, same_bits, timm, without_arrays
from tests.references.timm_models import FAMILIES, pair
from zoo.registry import variant
from zoo.weights import export

pytestmark = pytest.mark.reference

TOLERANCE = 5e-5  # as in the table
NAME = "swinv2_tiny_window8_256"
PRETRAINED = (3, 2)


def test_pretrained_windows_at_another_size_match_timm() -> None:
    theirs, ours, state = pair(
        NAME, {"img_size": (32, 64), "pretrained_window_sizes": PRETRAINED}, {"pretrained_window": PRETRAINED}
    )
    zoo.load(ours, state)
    x = images(1, 32, 64, 3)
    assert relative(jax.jit(ours)(x), logits_of(theirs, x)) < TOLERANCE


def test_authors_names_and_buffers() -> None:
    theirs, ours, state = pair(NAME, {"pretrained_window_sizes": PRETRAINED}, {"pretrained_window": PRETRAINED})
    authors = {name.replace("head.fc", "head"): array for name, array in state.items()}
    authors = {name.replace("layers.1.downsample", "layers.0.downsample"): array for name, array in authors.items()}
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


@pytest.mark.parametrize("name", FAMILIES["swinv2"].names())
def test_pretrained_windows_are_those_of_timm(name: str) -> None:
    config: Any = variant(name).config
    with without_arrays():
        theirs = timm.create_model(name)
    attention = [block.attn for stage in theirs.layers for block in stage.blocks]
    windows = [config.pretrained_window_of(stage) for stage, depth in enumerate(config.depths) for _ in range(depth)]
    assert windows == [a.pretrained_window_size if a.pretrained_window_size[0] else a.window_size for a in attention]
