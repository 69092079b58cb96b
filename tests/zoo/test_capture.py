"""zoo.capture returns what modules sow, through scan and remat, and leaves the model alone."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import zoo

IMAGES = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)


def test_attention_maps_of_every_block() -> None:
    model = zoo.create("vit_nano_patch4_32", depth=2)
    found = zoo.capture(model, IMAGES, "attention")
    assert sorted(found) == [f"blocks.{i}.mixer.attention" for i in range(2)]
    for weights in found.values():
        assert weights.shape == (2, 4, 17, 17)
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    folded = zoo.create("vit_nano_patch4_32", depth=2, scan=True, remat=True)
    for name, weights in zoo.capture(folded, IMAGES, "attention").items():
        np.testing.assert_allclose(weights, found[name], rtol=1e-4, atol=1e-6)


def test_routes_of_bilevel_routing() -> None:
    routes = zoo.capture(zoo.create("biformer_nano", image_size=16, depths=(1, 2)), IMAGES, "routes")
    assert sorted(routes) == [f"stages.{block}.mixer.routes" for block in ("0.blocks.0", "1.blocks.0", "1.blocks.1")]
    assert all(r.shape == (2, 16, 4) and r.min() >= 0 and r.max() < 16 for r in routes.values())


def test_the_model_is_left_as_it_was() -> None:
    options = {"depths": (1, 1), "dropout": 0.5, "drop_path": 0.5}
    model = zoo.create("biformer_nano", **options)
    before = [np.asarray(x) for x in jax.tree.leaves(zoo.create("biformer_nano", **options).stages[0].downsample)]
    model.train()
    first, second = zoo.capture(model, IMAGES), zoo.capture(model, IMAGES)
    assert all(np.array_equal(first[name], second[name]) for name in first)  # evaluation mode: no dropout
    assert not model.stages[1].blocks[0].mixer_drop.deterministic
    after = [np.asarray(x) for x in jax.tree.leaves(model.stages[0].downsample)]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(ValueError, match="named 'attentions'; it can capture: attention, residual, routes, value"):
        zoo.capture(zoo.create("biformer_nano", depths=(1, 1)), IMAGES, "attentions")
