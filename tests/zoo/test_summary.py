"""zoo.summary: pinned to counts made by hand, and nothing allocated."""

from __future__ import annotations

import jax
import pytest
from flax import nnx

import zoo
from layers.rematerialization import POLICIES


def vit_multiply_adds(size: int, patch: int, features: int, depth: int, mlp_ratio: float, classes: int) -> float:
    """Multiply-adds of a ViT with a class token, from its matrix products."""
    patches = (size // patch) ** 2
    tokens = patches + 1
    projections = 4 * tokens * features**2
    attention = 2 * tokens**2 * features  # scores and weighted values
    mlp = 2 * tokens * features * mlp_ratio * features
    return patches * patch**2 * 3 * features + depth * (projections + attention + mlp) + features * classes


def biformer_multiply_adds() -> float:
    """Multiply-adds of BiFormer-T at 224: convolutions (dense and depth-wise), projections, routed attention, MLP."""
    features, depths, topk, regions = (64, 128, 256, 512), (2, 2, 8, 2), (1, 4, 16, 49), 49
    total = 112**2 * 9 * 3 * 32 + 56**2 * 9 * 32 * 64 + features[-1] * 1000.0
    for stage, (c, depth, k) in enumerate(zip(features, depths, topk, strict=True)):
        tokens = (56 >> stage) ** 2
        if stage:
            total += tokens * 9 * features[stage - 1] * c
        depthwise = tokens * c * (9 + 25)
        routing = regions**2 * c if k < regions else 0
        attention = 2 * tokens * (k * tokens / regions) * c
        total += depth * (depthwise + 4 * tokens * c**2 + routing + attention + 2 * 3 * tokens * c**2)
    return total


def test_vit_base_equals_the_hand_count() -> None:
    summary = zoo.summary("vit_base_patch16_224", show=False)
    by_hand = vit_multiply_adds(224, 16, 768, 12, 4, 1000)
    assert summary.multiply_adds == pytest.approx(by_hand, rel=0.01)
    # What is no product (softmax, GELU, norms, residuals) is under two per cent of a ViT.
    assert 2 * by_hand < summary.flops < 2 * 1.02 * by_hand
    assert summary.parameters == 86_567_656


def test_biformer_tiny_equals_the_hand_count() -> None:
    summary = zoo.summary("biformer_tiny", show=False)
    by_hand = biformer_multiply_adds()
    assert summary.multiply_adds == pytest.approx(by_hand, rel=0.01)
    assert by_hand == pytest.approx(
        2.22e9, rel=0.01
    )  # the authors' program, counted by its convolutions and matrix products
    assert 2 * by_hand < summary.flops < 2 * 1.05 * by_hand


def test_rows_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    summary = zoo.summary("biformer_nano")
    assert sum(row.parameters for row in summary.rows) == summary.parameters
    assert sum(row.flops for row in summary.rows) == summary.flops
    blocks = [row for row in summary.rows if ".blocks." in row.name]
    assert len(blocks) == 4
    assert all(row.flops > 0 and row.parameters > 0 for row in blocks)
    assert summary.choices == {"attention: xla": 4, "depthwise_convolution: xla": 8}
    assert capsys.readouterr().out == f"{summary}\n"


def test_scan_and_remat_change_no_count() -> None:
    plain, folded = (zoo.summary("vit_nano_patch4_32", show=False, **o) for o in ({}, {"scan": True, "remat": True}))
    assert folded == plain


def test_overrides_input_and_made_models() -> None:
    small = zoo.summary("vit_nano_patch4_32", show=False, depth=2)
    large = zoo.summary("vit_nano_patch4_32", (64, 64, 3), show=False, depth=2)
    assert large.parameters == small.parameters
    assert large.flops > 4 * small.flops
    model = zoo.create("vit_nano_patch4_32", depth=2)
    assert zoo.summary(model, show=False) == small
    with pytest.raises(ValueError, match="already made: depth"):
        zoo.summary(model, depth=3)


def test_nothing_is_allocated() -> None:
    before = {id(array) for array in jax.live_arrays()}
    zoo.summary("vit_base_patch16_224", show=False)
    largest = max((array.size for array in jax.live_arrays() if id(array) not in before), default=0)
    assert largest < 1000  # a matrix of the model has 589 824


def test_a_model_without_input_shape_says_so() -> None:
    model = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="give input_shape"):
        zoo.summary(model)
    assert zoo.summary(model, (3, 4), show=False).multiply_adds == 3 * 4 * 4


def test_a_block_at_several_depths_costs_as_often_and_has_its_parameters_once() -> None:
    summary = zoo.summary("albert_nano", (16,), show=False, depth=3)
    first, *others = (row for row in summary.rows if row.name.startswith("blocks."))
    assert [(row.parameters, row.flops) for row in others] == [(0, first.flops)] * 2
    assert first.parameters > 0
    assert sum(row.parameters for row in summary.rows) == summary.parameters
    assert all(row.parameters >= 0 and row.flops >= 0 for row in summary.rows)


def test_memory_of_a_step() -> None:
    """Of a linear layer its input is kept; of what is computed again, a block's input."""
    layer = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    assert zoo.summary(nnx.Sequential(layer), (3, 4), batch_size=5, show=False).rows[0].activations == 5 * 3 * 4 * 4
    kept, products, again, elsewhere = (
        zoo.summary("vit_nano_patch4_32", show=False, batch_size=8, depth=2, remat=remat) for remat in POLICIES
    )
    blocks = [
        [row.activations for row in found.rows if row.name.startswith("blocks.")]
        for found in (kept, products, again, elsewhere)
    ]
    tokens = 8 * 65 * 64 * 4
    assert blocks[2:] == [[tokens] * 2, [0] * 2]
    # Of products: the input, queries with keys and values, what the output projection returns, the hidden features.
    assert blocks[1] == [(1 + 3 + 1 + 2) * tokens] * 2
    assert blocks[0] > blocks[1]
    assert again.step_bytes < products.step_bytes < kept.step_bytes
    assert kept.by_stage().rows[2].activations == sum(blocks[0])
    assert "kept MiB" in str(kept)
