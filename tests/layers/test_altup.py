"""AltUp against another form of its equations, and piece by piece."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from layers import Tokens, flatten
from layers.altup import AltUp, SequenceAltUp
from layers.block import Block
from layers.mixer import create_mixer
from layers.mlp import MLP
from layers.stack import Stack
from tests.compilation import program
from tests.layers.mixer_cases import relative
from tests.tiers import tiered
from tests.zoo.families import make

RNG = np.random.default_rng(0)
CLOSE = 1e-5


class Map(nnx.Module):
    """A block of one product and a sine."""

    def __init__(self, features: int):
        self.kernel = nnx.Param(jnp.asarray(RNG.standard_normal((features, features)), jnp.float32))

    def __call__(self, x: jax.Array, tokens: Any = None, shared: Any = None, own: Any = None) -> jax.Array:
        return x + jnp.sin(x @ self.kernel[...])


def block_of(features: int = 8) -> Block:
    rngs = nnx.Rngs(0)
    mixer = create_mixer({"name": "attention", "num_heads": 2, "rotary": 100.0}, features, causal=True, rngs=rngs)
    return Block({"mixer": mixer, "channel": MLP(features, 12, rngs=rngs)}, features=features, rngs=rngs)


def randomized(module: Any) -> Any:
    """With numbers other than the first ones, which would hide a mistake."""
    for part in ("prediction", "correction", "own", "anchor"):
        if isinstance(number := getattr(module, part, None), nnx.Param):
            number.set_value(number[...] + jnp.asarray(0.5 * RNG.standard_normal(number.shape), jnp.float32))
    return module


@pytest.mark.parametrize("active", [0, 2])
def test_equation(active: int) -> None:
    """A stream at a time, in float64."""
    block, streams = Map(4), 3
    module = randomized(AltUp(block, 4, streams=streams, active=active, rngs=nnx.Rngs(0)))
    x = RNG.standard_normal((2, 5, 12)).astype(np.float32)
    old = [x[..., 4 * i : 4 * i + 4].astype(np.float64) for i in range(streams)]
    p, g = np.eye(streams) + np.asarray(module.prediction[...]), 1 + np.asarray(module.correction[...])
    y = old[active] + np.sin(old[active] @ np.asarray(block.kernel[...], np.float64))
    predicted = [sum(p[i, k] * old[k] for k in range(streams)) for i in range(streams)]
    expected = np.concatenate([predicted[i] + g[i] * (y - predicted[active]) for i in range(streams)], -1)
    assert relative(program(module)(x), expected) < CLOSE


def test_equation_along_the_sequence() -> None:
    """A token at a time, in float64."""
    block, stride = Map(4), 3
    module = randomized(SequenceAltUp(block, 4, stride=stride, rngs=nnx.Rngs(0)))
    x = RNG.standard_normal((2, 8, 4)).astype(np.float32)
    a, b, g = (float(getattr(module, name)[0]) for name in ("own", "anchor", "correction"))
    expected = np.zeros(x.shape)
    for i in range(8):
        token, anchor = x[:, i].astype(np.float64), x[:, stride * (i // stride)].astype(np.float64)
        y = anchor + np.sin(anchor @ np.asarray(block.kernel[...], np.float64))
        expected[:, i] = a * token + b * anchor + g * (y - (a + b) * anchor)
    assert relative(program(module)(x), expected) < CLOSE


def test_one_stream_of_every_token_is_the_block() -> None:
    block = block_of()
    x = RNG.standard_normal((2, 6, 8)).astype(np.float32)
    want = program(block)(x)
    assert relative(program(AltUp(block, 8, streams=1, rngs=nnx.Rngs(0)))(x), want) < CLOSE
    assert relative(program(SequenceAltUp(block, 8, stride=1, rngs=nnx.Rngs(0)))(x), want) < CLOSE


def test_without_correction_nothing_of_the_block_is_seen() -> None:
    module = AltUp(Map(4), 4, rngs=nnx.Rngs(0))
    module.correction.set_value(-jnp.ones(2))
    x = RNG.standard_normal((1, 3, 8)).astype(np.float32)
    assert relative(program(module)(x), x) < CLOSE


def kinds() -> dict[str, Any]:
    made: dict[str, Any] = {"rngs": nnx.Rngs(0)}
    return {
        "streams": lambda: randomized(AltUp(block_of(), 8, streams=2, active=1, **made)),
        "routed": lambda: AltUp(block_of(), 8, streams=2, routed=True, **made),
        "sequence": lambda: randomized(SequenceAltUp(block_of(16), 16, stride=3, **made)),
        "both": lambda: randomized(SequenceAltUp(randomized(AltUp(block_of(), 8, **made)), 16, stride=2, **made)),
    }


@pytest.mark.parametrize("kind", tiered(kinds(), lambda kind: kind == "both"))
def test_piece_by_piece(kind: str) -> None:
    """Cut anywhere, of rows of several lengths: as the whole."""
    stack = Stack([kinds()[kind](), kinds()[kind]()])
    graphdef, arrays = nnx.split(stack)
    x = RNG.standard_normal((3, 11, 16)).astype(np.float32)
    mask = np.arange(11) < np.asarray([11, 4, 7])[:, None]
    whole = np.asarray(jax.jit(lambda x, mask: nnx.merge(graphdef, arrays)(x, mask)[0])(x, mask))

    @functools.partial(jax.jit, static_argnums=0)
    def read(cuts: tuple[int, ...], x: jax.Array, mask: jax.Array) -> jax.Array:
        model = nnx.merge(graphdef, arrays)
        state, found = model.init_state(3, 12), []
        for start, end in itertools.pairwise(cuts):
            y, state = model.extend(x[:, start:end], state, mask[:, start:end])
            found.append(y)
        return jnp.concatenate(found, 1)

    for cuts in ((0, 1, 2, 3, 4, 11), (0, 5, 6, 11)):
        pieces = np.asarray(read(cuts, x, mask))
        assert relative(np.where(mask[..., None], pieces, 0), np.where(mask[..., None], whole, 0)) < CLOSE


def test_refusals() -> None:
    with pytest.raises(ValueError, match="active=2 is not one of the 2 streams"):
        AltUp(Map(4), 4, active=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="stride is at least 1"):
        SequenceAltUp(Map(4), 4, stride=0, rngs=nnx.Rngs(0))
    module = SequenceAltUp(Map(4), 4, rngs=nnx.Rngs(0))
    packed = Tokens(segment_ids=jnp.zeros((1, 4), jnp.int32))
    with pytest.raises(ValueError, match="honors neither segment_ids nor positions"):
        module(jnp.zeros((1, 4, 4)), packed)
    with pytest.raises(ValueError, match='turns is "alternating" or "same"'):
        make("altup", turns="random")


def test_sizes() -> None:
    """The embedding, the last norms, the head and the context's projections are twice as wide, and each block has K^2 +
    K numbers more; recycled, only the numbers are more.
    """
    options: dict[str, Any] = {"vocab_size": 11, "features": 8, "depth": 3, "num_heads": 2, "hidden": 16}
    wide, narrow, plain = (
        sum(leaf.size for leaf in flatten(model, nnx.Param).values())
        for model in (
            zoo.create("altup_nano", **options),
            zoo.create("altup_nano", **options, recycled=True),
            zoo.create("t5_nano", **options, mlp="geglu_tanh", tied=False),
        )
    )
    assert narrow - plain == 6 * (4 + 2)
    assert wide - narrow == 2 * 11 * 8 + 2 * 8 + 3 * 2 * 8 * 8
    model: Any = zoo.create("altup_nano", **options, sequence_stride=2)
    assert [type(block).__name__ for block in model.encoder.blocks] == ["AltUp", "SequenceAltUp", "AltUp"]
    assert [block.active for block in model.decoder.blocks] == [0, 1, 0]


@pytest.mark.parametrize("form", [{}, pytest.param({"recycled": True, "sequence_stride": 2}, marks=pytest.mark.full)])
def test_a_model_reads_as_it_writes(form: dict[str, Any]) -> None:
    """A target in pieces is the whole one, with sources of several lengths."""
    model: Any = make("altup", depth=3, **form)
    source, target = (RNG.integers(0, 11, (2, length)).astype(np.int32) for length in (9, 6))
    mask = np.arange(9) < np.asarray([[9], [5]])
    graphdef, arrays = nnx.split(model)

    @jax.jit
    def read() -> Any:
        model = nnx.merge(graphdef, arrays, copy=True)
        context = model.encode(source, mask)
        state, found = model.init_state(2, 8, context=context, context_mask=jnp.asarray(mask)), []
        for start, end in ((0, 1), (1, 4), (4, 6)):
            y, state = model.extend(target[:, start:end], state)
            found.append(y)
        return jnp.concatenate(found, 1), model(source, target, mask), model(source[1:, :5], target[1:])

    pieces, whole, alone = read()
    assert relative(pieces, whole) < CLOSE
    assert relative(whole[1:], alone) < CLOSE
