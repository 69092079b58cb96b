"""ViR read row by row; test_recorded_models.py compares numbers."""

from __future__ import annotations

import jax
import numpy as np

import zoo
from tests.references.comparing import relative


def test_an_image_can_be_read_row_by_row() -> None:
    """The class token comes behind the last row."""
    sizes = {"features": 16, "depth": 2, "num_heads": 2, "image_size": 16}
    model = zoo.create("vir_nano_patch4_32", num_classes=3, **sizes)
    model.eval()
    x = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)

    @jax.jit
    def both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        tokens, state = model.embed(x), model.blocks.init_state(2)
        for row in range(5):
            y, state = model.blocks.extend(tokens[:, 4 * row : 4 * row + 4], state)
        return model(x), model.head(model.norm(y[:, -1]))

    whole, by_rows = both(x)
    assert relative(by_rows, whole) < 1e-5
