"""MaxViT against timm with random weights: logits, features, gradients, names, sizes, released checkpoints."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from layers import flatten
from layers.position import resample_offsets
from tests.references.live import (
    assert_listed_as_by_timm,
    assert_matches_timm,
    assert_whole_model_matches_timm,
    images,
    logits_of,
    randomize,
    relative,
    timm,
    torch,
)
from tests.tiers import tiered
from zoo.registry import Variant, variant

pytestmark = pytest.mark.reference

TOLERANCE = 5e-6
PIXELS = 64  # windows and grids of 2x2 tokens
SMALL = {
    "features": (32, 64, 64),
    "num_heads": (1, 2, 2),
    "depths": (1, 2, 1),
    "stem": 16,
    "image_size": PIXELS,
    "num_classes": 10,
}
RELEASED = [name for name in zoo.list_models("maxvit_*") if variant(name).published]


def _timm_name(entry: Variant) -> str:
    size = entry.name.split("_")[1]
    return f"maxvit_{size}_tf_{entry.config.image_size}"


def _small_pair(window: int = 2, seed: int = 0) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """timm's model and ours, narrow and shallow, with the same random weights and statistics."""
    theirs = timm.create_model(
        "maxvit_tiny_tf_224",
        embed_dim=SMALL["features"],
        depths=SMALL["depths"],
        stem_width=SMALL["stem"],
        head_hidden_size=SMALL["features"][-1],
        transformer_window_size=(window, window),
        img_size=PIXELS,
        num_classes=10,
    )
    state = randomize(theirs, seed)
    ours = zoo.create("maxvit_tiny", **SMALL, window=window)
    ours.eval()
    return theirs, ours, state


def test_matches_timm(record_property: Any) -> None:
    assert_matches_timm(
        "maxvit_tiny",
        _small_pair(),
        images(2, PIXELS, PIXELS, 3),
        record_property,
        tolerance=TOLERANCE,
        indices=(1, 2, 3),
    )


def test_oblong_images_and_larger_windows_match_timm() -> None:
    theirs, ours, state = _small_pair(window=4)
    zoo.load(ours, state)
    x = images(1, 64, 128, 3)
    assert relative(jax.jit(ours)(x), logits_of(theirs, x)) < TOLERANCE


@pytest.mark.full
def test_whole_model_matches_timm(tmp_path: Any) -> None:
    """Not reduced, and through a file that timm's own code loads."""
    assert_whole_model_matches_timm("maxvit_tiny_tf_224", tmp_path / "model.safetensors", tolerance=TOLERANCE)


@pytest.mark.parametrize("name", tiered(RELEASED, lambda name: name == RELEASED[0]))
def test_names_sizes_and_releases_are_those_of_timm(name: str) -> None:
    from timm.models.maxxvit import default_cfgs

    reference = _timm_name(variant(name))
    assert variant(reference) is variant(name)
    assert_listed_as_by_timm(name, reference, default_cfgs)


def test_variants_are_those_of_timm() -> None:
    assert {_timm_name(variant(name)) for name in RELEASED} == set(timm.list_models("maxvit_*_tf_*"))


@pytest.mark.parametrize("window", [1, 3])
def test_other_input_size_resamples_the_tables(window: int) -> None:
    _, made, state = _small_pair(window=2)
    zoo.load(made, state)
    ours = zoo.create("maxvit_tiny", **{**SMALL, "image_size": 32 * window})
    side = 2 * window - 1
    with pytest.warns(
        UserWarning,
        match=rf"bias.table and 7 more tables were made for a grid of 3x3 and are resampled to {side}x{side}",
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
