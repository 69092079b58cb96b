"""What ViT-ResNAS takes; test_recorded_models.py compares numbers."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import zoo
from tests.zoo.families import make
from zoo.weights import export


def test_the_head_for_patches_is_left_out() -> None:
    """The authors' files have it, of the training in which patches are mixed."""
    model: Any = make("vit_resnas")
    state = export(model, naming="vit_resnas")
    assert "blocks.2.patch_reduce.weight" in state  # reductions are counted among the blocks
    more = {"patch_head.weight": np.ones((5, 24), np.float32), "patch_head.bias": np.ones(5, np.float32)}
    zoo.load(model, {**state, **more}, naming="vit_resnas")
    assert export(model, naming="vit_resnas").keys() == state.keys()


def test_its_widths_are_its_own() -> None:
    with pytest.raises(ValueError, match=re.escape("the widths of ViT-ResNAS change with its own reductions")):
        make("vit_resnas", reductions={0: "max_pool"})
    with pytest.raises(ValueError, match="depth=9 is more than the blocks that stages= has"):
        make("vit_resnas", depth=9)
    with pytest.raises(ValueError, match="patch_size is even, got 7"):
        make("vit_resnas", patch_size=7)
    # Three heads do not divide 16 features, nor 24 by 8.
    model: Any = make("vit_resnas", mixer={"name": "attention"})
    assert [block.mixer.num_heads for block in model.blocks] == [1, 2, 3, 1]
