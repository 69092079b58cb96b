"""MaxViT's windows and their tables at other sizes beside timm's; test_timm_models.py compares the rest."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from layers import flatten
from layers.position import resample_offsets
from tests.references.live import images, logits_of, relative, torch
from tests.references.timm_models import pair

pytestmark = pytest.mark.reference

TOLERANCE = 5e-6


def test_oblong_images_and_larger_windows_match_timm() -> None:
    theirs, ours, state = pair("maxvit_tiny", {"transformer_window_size": (4, 4)}, {"window": 4})
    zoo.load(ours, state)
    x = images(1, 32, 64, 3)
    assert relative(jax.jit(ours)(x), logits_of(theirs, x)) < TOLERANCE


@pytest.mark.parametrize("window", [1, 3])
def test_other_input_size_resamples_the_tables(window: int) -> None:
    _, made, state = pair("maxvit_tiny")
    zoo.load(made, state)
    _, ours, _ = pair("maxvit_tiny", ours={"image_size": 32 * window, "window": None})
    side = 2 * window - 1
    with pytest.warns(
        UserWarning,
        match=rf"bias.table and 5 more tables were made for a grid of 3x3 and are resampled to {side}x{side}",
    ):
        zoo.load(ours, state)
    for name, table in flatten(made).items():
        if name.endswith("bias.table"):
            np.testing.assert_allclose(
                flatten(ours)[name], _resized_by_timm(np.asarray(table), (window, window)), atol=1e-5, err_msg=name
            )


def _resized_by_timm(table: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    from timm.layers.pos_embed_rel import resize_rel_pos_bias_table

    shape = (2 * window[0] - 1, 2 * window[1] - 1)
    theirs = resize_rel_pos_bias_table(
        torch.from_numpy(table.transpose(2, 0, 1).copy()), window, (table.shape[2], *shape)
    )
    return theirs.numpy().transpose(1, 2, 0)


@pytest.mark.parametrize("old", [(7, 7), (3, 5), (2, 2), (16, 16)])
@pytest.mark.parametrize("new", [(12, 12), (16, 12), (7, 7), (4, 9), (1, 2), (3, 3)])
def test_relative_tables_are_resized_as_by_timm(old: tuple[int, int], new: tuple[int, int]) -> None:
    table = np.random.default_rng(0).standard_normal((2 * old[0] - 1, 2 * old[1] - 1, 3)).astype(np.float32)
    found = resample_offsets(jnp.asarray(table), (2 * new[0] - 1, 2 * new[1] - 1))
    np.testing.assert_allclose(found, _resized_by_timm(table, new), atol=2e-5)
