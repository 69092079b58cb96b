"""LongViT against recorded outputs of torchscale's; their files go in and out; the norm inside the branches; sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flax import nnx

import zoo
from layers import MLP, parameter_count
from tests.layers.mixer_cases import relative
from tests.references import longvit as recorded
from zoo.registry import abstract, variant
from zoo.weights import export

SIZE = {
    "image_size": recorded.IMAGE, "patch_size": recorded.PATCH, "features": recorded.FEATURES, "depth": recorded.DEPTH,
    "num_heads": recorded.HEADS,
    "num_classes": recorded.CLASSES,
}  # fmt: skip


def test_equal_to_torchscale_and_its_weights_come_out_again(record_property: Any) -> None:
    weights, images, want = recorded.load()
    model = zoo.create("longvit_small_patch32_1024", weights=weights, **SIZE)
    model.eval()
    difference = relative(nnx.jit(lambda model, x: model(x))(model, images), want)
    assert difference < 5e-6
    exported = export(model, naming="torchscale")
    assert exported.keys() == weights.keys()
    for name, weight in weights.items():
        np.testing.assert_array_equal(exported[name], weight, err_msg=name)
    about = {"architecture": "longvit_small", "reference": "microsoft/torchscale examples/longvit at 4d1e0e82"}
    record_property("parity", {**about, "kind": "recorded", "mapped": len(weights), "difference": difference})


def test_segments_grow_with_the_image() -> None:
    for name in zoo.list_models("longvit_small_*"):
        config: Any = variant(name).config
        patches = (config.image_size // config.patch_size) ** 2
        assert max(config.mixer["segments"]) == patches
        assert len(config.mixer["segments"]) == len(config.mixer["rates"]) == 5
    # By hand: patches, positions, twelve blocks with five norms' worth of widths, the norm behind the pooling, the
    # head.
    block = 4 * (384 * 384 + 384) + 2 * 384 * 1536 + 1536 + 384 + 2 * (3 * 384 + 1536)
    count = 32 * 32 * 3 * 384 + 384 + 1024 * 384 + 12 * block + 2 * 384 + 384 * 1000 + 1000
    assert (
        parameter_count(abstract(variant("longvit_small_patch32_1024"), variant("longvit_small_patch32_1024").config))
        == count
    )


@pytest.mark.parametrize("norm", [None, "layer"])
def test_mlp_with_a_norm_inside(norm: str | None) -> None:
    mlp, x = MLP(6, 9, norm=norm, rngs=nnx.Rngs(0)), np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    hidden = mlp.activation(mlp.up(x))
    want = mlp.down(
        (hidden - hidden.mean(-1, keepdims=True)) / np.sqrt(hidden.var(-1, keepdims=True) + 1e-5) if norm else hidden
    )
    assert relative(mlp(x), want) < 1e-6
