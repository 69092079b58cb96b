"""HVT's weights for another size of image; test_recorded_models.py compares numbers."""

from __future__ import annotations

import pytest

import zoo
from tests.compilation import program
from tests.references import hvt as recorded
from tests.references import seeded
from tests.references.comparing import relative
from tests.references.recording import Recording

SIZE = {"features": 32, "depth": 4, "num_heads": 2, "mlp_ratio": 2.0, "num_classes": 10, "pool_every": 2}


@pytest.mark.full
def test_weights_of_another_image_size_are_resampled() -> None:
    """Both tables of positions: those of the patches by row and column, those of pooled tokens along the sequence."""
    weights = Recording(recorded).weights()
    with pytest.warns(UserWarning, match="was made for a grid of") as caught:
        model = zoo.create("hvt_small_4", weights=weights, image_size=112, **SIZE)
    assert sorted(str(warning.message) for warning in caught) == [
        "blocks.reductions.0.position.table was made for a grid of 1x12 and is resampled to 1x24",
        "blocks.reductions.2.position.table was made for a grid of 1x5 and is resampled to 1x11",
        "position.table was made for a grid of 5x5 and is resampled to 7x7",
    ]
    assert model.blocks.reductions["2"].position.table.shape == (1, 11, 32)
    small = zoo.create("hvt_small_4", weights=weights, image_size=80, **SIZE)
    x = seeded.images((1, 112, 112, 3), recorded.SEED)
    assert relative(program(small)(x), program(model)(x)) < 1e-5
