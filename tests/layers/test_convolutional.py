"""Patch embedding, stems, convolutions, pooling and bottlenecks equal the general operations, and refuse what they
can't do."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from layers import (
    BasicBlock,
    Bottleneck,
    ConvNorm,
    ConvStem,
    DepthwiseConvolution,
    MultiHeadAttention,
    PatchEmbed,
    assign,
    create_gate,
    parameter_count,
)
from layers.depthwise import DepthwiseConv
from layers.pool import average_pool, max_pool
from tests.layers.mixer_cases import relative
from tests.references import ulsam

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_depthwise_module_equals_a_grouped_conv_of_the_same_parameters() -> None:
    ours = DepthwiseConv(4, 3, strides=2, rngs=nnx.Rngs(0))
    theirs = nnx.Conv(4, 4, (3, 3), strides=2, padding=1, feature_group_count=4, rngs=nnx.Rngs(0))
    ours.bias[...] = normal(4)
    theirs.kernel[...], theirs.bias[...] = ours.kernel[...], ours.bias[...]
    x = normal(1, 7, 8, 4)
    assert relative(ours(x), theirs(x)) < 1e-5


def test_patch_embedding_equals_a_convolution() -> None:
    ours = PatchEmbed(4, 3, 6, rngs=nnx.Rngs(0))
    theirs = nnx.Conv(3, 6, (4, 4), strides=4, padding="VALID", rngs=nnx.Rngs(0))
    ours.bias[...] = normal(6)
    theirs.kernel[...], theirs.bias[...] = ours.kernel[...], ours.bias[...]
    x = normal(2, 8, 12, 3)
    assert ours(x).shape == (2, 2, 3, 6)
    assert relative(ours(x), theirs(x)) < 1e-5


def test_patch_embedding_names_the_divisor() -> None:
    with pytest.raises(ValueError, match="9x8 can't be cut into 4x4 patches: both sides must be divisible by 4"):
        PatchEmbed(4, 3, 6, rngs=nnx.Rngs(0))(normal(1, 9, 8, 3))


@pytest.mark.parametrize("size", [16, 17])
def test_each_convolution_of_a_stem_halves_rounding_up(size: int) -> None:
    stem = ConvStem(3, (4, 6), rngs=nnx.Rngs(0))
    assert jax.eval_shape(lambda x: nnx.clone(stem)(x), normal(1, size, size, 3)).shape == (
        1,
        -(-size // 4),
        -(-size // 4),
        6,
    )


@pytest.mark.parametrize(("padding", "groups", "size"), [(None, 1, 4), (0, 2, 3), (2, 4, 5)])
def test_padding_and_groups_of_a_convolution(padding: int | None, groups: int, size: int) -> None:
    ours = ConvNorm(4, 8, strides=2, padding=padding, groups=groups, norm=None, rngs=nnx.Rngs(0))
    theirs = nnx.Conv(
        4, 8, (3, 3), strides=2, padding=1 if padding is None else padding, feature_group_count=groups, rngs=nnx.Rngs(0)
    )
    theirs.kernel[...] = ours.conv.kernel[...]
    x = normal(1, 7, 7, 4)
    assert ours(x).shape == (1, size, size, 8)
    assert relative(ours(x), theirs(x)) < 1e-6


def reduced(
    x: np.ndarray, start: float, function: Any, size: int, strides: int, before: int, after: tuple[int, int]
) -> np.ndarray:
    """XLA's reduction over windows."""
    sides = ((0, 0), *((before, n) for n in after), (0, 0))
    return np.asarray(jax.lax.reduce_window(x, start, function, (1, size, size, 1), (1, strides, strides, 1), sides))


@pytest.mark.parametrize(("size", "strides", "padding"), [(3, 2, 1), (2, 2, 0), (3, 1, 1), (5, 3, 0)])
def test_maxima_of_windows(size: int, strides: int, padding: int) -> None:
    x = normal(2, 9, 12, 3)
    want = reduced(x, -np.inf, jax.lax.max, size, strides, padding, (padding, padding))
    np.testing.assert_array_equal(max_pool(x, size, strides, padding), want)


@pytest.mark.parametrize("size", [2, 3])
def test_means_of_windows_count_the_tokens_there_are(size: int) -> None:
    x = normal(2, 9, 11, 3)
    rest = (-9 % size, -11 % size)
    sums, counts = (reduced(a, 0.0, jax.lax.add, size, size, 0, rest) for a in (x, np.ones_like(x)))
    assert relative(average_pool(x, size), sums / counts) < 1e-6


def test_a_block_that_strides_averages_what_a_mixer_gives() -> None:
    mixer = DepthwiseConvolution(4, kernel_size=3, rngs=nnx.Rngs(0))
    block = Bottleneck(6, 16, mixer=mixer, strides=2, rngs=nnx.Rngs(1))
    block.eval()
    x = normal(1, 5, 6, 6)
    h = jax.nn.relu(block.reduce_norm(block.reduce(x)))
    h = jax.nn.relu(block.mixer_norm(average_pool(mixer(h), 2)))
    want = jax.nn.relu(block.shortcut(x) + block.expand_norm(block.expand(h)))
    assert want.shape == (1, 3, 3, 16)
    assert relative(block(x), want) < 1e-6


def test_a_block_of_zero_init_is_its_shortcut() -> None:
    x = normal(1, 5, 5, 8)
    for block in (
        BasicBlock(8, 8, zero_init=True, rngs=nnx.Rngs(0)),
        Bottleneck(8, 8, zero_init=True, rngs=nnx.Rngs(0)),
    ):
        np.testing.assert_array_equal(block(x), np.maximum(x, 0))


def test_what_convolutional_parts_refuse() -> None:
    rngs = nnx.Rngs(0)
    with pytest.raises(
        ValueError,
        match="BasicBlock does not honor mask: its convolutions and norms see all tokens alike; leave it out",
    ):
        BasicBlock(4, 4, rngs=rngs)(normal(1, 3, 3, 4), np.ones((1, 3, 3), bool))
    with pytest.raises(ValueError, match='shortcut is "convolution" or "average", got \'pool\''):
        BasicBlock(4, 4, shortcut="pool", rngs=rngs)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match="groups=2 is an option of the 3x3 convolution, which MultiHeadAttention replaces"
    ):
        Bottleneck(8, 8, groups=2, mixer=MultiHeadAttention(2, num_heads=1, rngs=rngs), rngs=rngs)
    with pytest.raises(ValueError, match="unknown gate 'squeeze': did you mean 'squeeze_excite'"):
        create_gate("squeeze", 8, rngs=rngs)
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
        DepthwiseConvolution(4, kernel_size=4, rngs=rngs)


def test_efficient_channel_attention_is_its_equation() -> None:
    """Against sums written out, with kernels as wide as the paper's rule has them."""
    sizes = {16: 3, 64: 3, 256: 5, 512: 5, 1024: 5, 2048: 7}
    assert {features: len(create_gate("eca", features, rngs=nnx.Rngs(0)).kernel) for features in sizes} == sizes
    gate = create_gate({"name": "eca", "kernel_size": 5}, 6, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 6)).astype(np.float32)
    means, kernel = x.mean((1, 2)), np.asarray(gate.kernel)
    mixed = np.array(
        [[sum(kernel[k] * row[c + k - 2] for k in range(5) if 0 <= c + k - 2 < 6) for c in range(6)] for row in means]
    )
    np.testing.assert_allclose(gate(x), x / (1 + np.exp(-mixed))[:, None, None], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
        create_gate({"name": "eca", "kernel_size": 4}, 6, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("size", "count"), [("tiny", 7 * 32), ("large", 7 * 8 * 32 + 2 * 32)])
def test_efficient_local_attention_is_its_equation(size: str, count: int) -> None:
    """Against loops over groups; and the gate of a map is a product of one of rows and one of columns."""
    gate = create_gate({"name": "ela", "size": size}, 32, rngs=nnx.Rngs(0))
    assert parameter_count(gate) == count
    rng = np.random.default_rng(0)
    scale, bias = 1 + 0.3 * rng.standard_normal(32), 0.3 * rng.standard_normal(32)
    gate.scale.set_value(scale.astype(np.float32))
    gate.bias.set_value(bias.astype(np.float32))
    x = rng.standard_normal((2, 5, 4, 32)).astype(np.float32)
    kernel = np.asarray(gate.conv.kernel)
    reach, inside, norm_groups = len(kernel) // 2, kernel.shape[1], gate.groups

    def expected(strip: np.ndarray) -> np.ndarray:
        h = np.zeros_like(strip)
        for c in range(32):
            first = c // inside * inside
            for k in range(len(kernel)):
                for t in range(len(strip)):
                    if 0 <= t + k - reach < len(strip):
                        h[t, c] += strip[t + k - reach, first : first + inside] @ kernel[k, :, c]
        groups = np.split(h, norm_groups, axis=1)
        h = np.concatenate([(part - part.mean()) / np.sqrt(part.var() + 1e-5) for part in groups], 1)
        return 1 / (1 + np.exp(-(h * scale + bias)))

    gates = [expected(x[i].mean(1))[:, None] * expected(x[i].mean(0)) for i in range(2)]
    np.testing.assert_allclose(jax.jit(gate)(x), x * np.stack(gates), rtol=2e-4, atol=1e-5)
    with pytest.raises(ValueError, match="24 features can't be split into groups of 1 and into 16 groups"):
        create_gate("ela", 24, rngs=nnx.Rngs(0))


def test_subspace_attention_is_the_authors(record_property: Any) -> None:
    """Groups of channels with a map each, recorded; and the paper's count of parameters."""
    arrays = dict(np.load(ulsam.PATH))
    about = json.loads(str(arrays.pop("about")))
    gate = create_gate({"name": "ulsam", "groups": ulsam.GROUPS}, ulsam.FEATURES, rngs=nnx.Rngs(0))
    assert parameter_count(create_gate("ulsam", 64, rngs=nnx.Rngs(0))) == 332
    gate.eval()
    assign(gate, ulsam.ours())
    loss = lambda x: jax.numpy.sin(gate(x)).sum()  # noqa: E731
    out, gradient = jax.jit(lambda x: (gate(x), jax.grad(loss)(x)))(ulsam.maps())
    difference = max(relative(out, arrays["out"]), relative(gradient, arrays["gradient"]))
    row = {"architecture": "layer ulsam", "reference": f"{about['repository']} {about['commit'][:8]}"}
    record_property("parity", {**row, "kind": "recorded", "mapped": len(ulsam.ours()), "difference": difference})
    assert difference < 1e-5
