"""T2T-ViT's soft split, table of positions and sizes; test_recorded_models.py compares numbers."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from layers.patch import soft_split
from layers.position import sinusoids
from tests.references import t2t_vit as recorded
from tests.references.comparing import relative
from tests.references.recording import Recording


@pytest.mark.parametrize("side", recorded.SIDES)
def test_positions_are_those_of_the_authors(side: int) -> None:
    ours = sinusoids((side // 16) ** 2 + 1, recorded.SIZE["embed_dim"])[None, :, :8]
    assert relative(ours, Recording(recorded).arrays(f"performer/{side}")["pos_embed"]) < 1e-5


def test_soft_split_takes_windows_channel_by_channel() -> None:
    x = np.arange(2 * 5 * 6 * 3, dtype=np.float32).reshape(2, 5, 6, 3)
    tokens = np.asarray(soft_split(jnp.asarray(x), 3, 2, 1))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    assert tokens.shape == (2, 3, 3, 27)
    assert np.array_equal(tokens[1, 2, 1], padded[1, 4:7, 2:5].transpose(2, 0, 1).reshape(-1))
    with pytest.raises(ValueError, match="2x2 is smaller than a window of 7x7"):
        soft_split(jnp.zeros((1, 2, 2, 3)), 7, 4, 2)
