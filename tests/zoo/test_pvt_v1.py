"""Which mixers PVT accepts; test_recorded_models.py compares numbers."""

from __future__ import annotations

from typing import Any

import pytest

import zoo


def test_the_last_stage_has_a_class_token() -> None:
    with pytest.raises(ValueError, match="FocalModulation takes grids only"):
        zoo.create("pvt_nano", mixer="focal_modulation")
    model: Any = zoo.create("pvt_nano", pattern={"0.every": "focal_modulation"})
    assert [type(stage.blocks[0].mixer).__name__ for stage in model.stages] == ["FocalModulation", "MultiHeadAttention"]
