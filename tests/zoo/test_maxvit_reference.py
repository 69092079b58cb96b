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
    images,
    ours_and_gradient,
    outputs_and_gradient,
    randomise,
    relative,
    same_bits,
    timm,
    torch,
)
from tests.tiers import tiered
from zoo.registry import Variant, variant
from zoo.weights import export

pytestmark = pytest.mark.reference

TOLERANCE = 5e-6
PIXELS = 64  # windows and grids of 2x2 tokens
SMALL = {"features": (32, 64, 64), "num_heads": (1, 2, 2), "depths": (1, 2, 1), "stem": 16, "image_size": PIXELS, "num_classes": 10}
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
    state = randomise(theirs, seed)
    ours = zoo.create("maxvit_tiny", **SMALL, window=window)
    ours.eval()
    return theirs, ours, state


def test_matches_timm(record_property: Any) -> None:
    theirs, ours, state = _small_pair()
    zoo.load(ours, state)
    x = images(2, PIXELS, PIXELS, 3)

    def reference(x: Any) -> list[Any]:
        return [theirs(x), *theirs.forward_intermediates(x, indices=[1, 2, 3], intermediates_only=True)]

    expected, gradient = outputs_and_gradient(reference, x)
    expected = [expected[0], *[feature.transpose(0, 2, 3, 1) for feature in expected[1:]]]
    found, our_gradient = ours_and_gradient(lambda x: [ours(x), *ours.features(x)], x)
    difference = max(relative(a, b) for a, b in zip([*found, our_gradient], [*expected, gradient], strict=True))
    row = {"architecture": "maxvit_tiny", "reference": f"timm {timm.__version__}", "kind": "live", "mapped": len(state), "difference": difference}
    record_property("parity", row)
    assert difference < TOLERANCE
    assert same_bits(export(ours, naming="timm"), state)


def test_oblong_images_and_larger_windows_match_timm() -> None:
    theirs, ours, state = _small_pair(window=4)
    zoo.load(ours, state)
    x = images(1, 64, 128, 3)
    with torch.no_grad():
        assert relative(jax.jit(ours)(x), theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()) < TOLERANCE


@pytest.mark.full
def test_whole_model_matches_timm(tmp_path: Any) -> None:
    """Not reduced, and through a file that timm's own code loads."""
    theirs = timm.create_model("maxvit_tiny_tf_224")
    state = randomise(theirs)
    ours = zoo.create("maxvit_tiny_tf_224", weights=state)
    ours.eval()
    x = images(1, 224, 224, 3)
    with torch.no_grad():
        assert relative(jax.jit(ours)(x), theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()) < TOLERANCE
    zoo.save(ours, tmp_path / "maxvit.safetensors")
    again = timm.create_model("maxvit_tiny_tf_224", checkpoint_path=str(tmp_path / "maxvit.safetensors"))
    assert same_bits({k: v.numpy() for k, v in again.state_dict().items()}, state)


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
    with pytest.warns(UserWarning, match=rf"bias.table and 7 more tables were made for a grid of 3x3 and are resampled to {side}x{side}"):
        zoo.load(ours, state)
    for name, table in flatten(made).items():
        if name.endswith("bias.table"):
            np.testing.assert_allclose(flatten(ours)[name], _resized_by_timm(np.asarray(table), (window, window)), atol=1e-5, err_msg=name)


def _resized_by_timm(table: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    from timm.layers.pos_embed_rel import resize_rel_pos_bias_table

    shape = (2 * window[0] - 1, 2 * window[1] - 1)
    theirs = resize_rel_pos_bias_table(torch.from_numpy(table.transpose(2, 0, 1).copy()), window, (table.shape[2], *shape))
    return theirs.numpy().transpose(1, 2, 0)


@pytest.mark.parametrize("old", [(7, 7), (3, 5), (2, 2), (16, 16)])
@pytest.mark.parametrize("new", [(12, 12), (16, 12), (7, 7), (4, 9), (1, 2), (3, 3)])
def test_relative_tables_are_resized_as_by_timm(old: tuple[int, int], new: tuple[int, int]) -> None:
    table = np.random.default_rng(0).standard_normal((2 * old[0] - 1, 2 * old[1] - 1, 3)).astype(np.float32)
    found = resample_offsets(jnp.asarray(table), (2 * new[0] - 1, 2 * new[1] - 1))
    np.testing.assert_allclose(found, _resized_by_timm(table, new), atol=2e-5)
