"""Attention whose scores decay with distance, against recorded outputs of flash-linear-attention and of the authors of
RMT and LookHere, and BigBird's blocks against transformers' layer.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers import Tokens, assign
from layers.attention.relative import GridPenalty
from tests.layers.mixer_cases import relative
from tests.references import penalties as recorded
from tests.references import seeded

ARRAYS = dict(np.load(recorded.PATH))
TOLERANCE = 2e-5

pytestmark = pytest.mark.reference


def note(record_property: Any, name: str, reference: str, kind: str, mapped: int, difference: float) -> None:
    about = {"architecture": f"{name} (layer)", "reference": reference, "kind": kind, "mapped": mapped}
    record_property("parity", {**about, "difference": difference})
    assert difference < TOLERANCE


@pytest.mark.parametrize("window", [None, recorded.WINDOW])
def test_forgetting_attention(window: int | None, record_property: Any) -> None:
    given = recorded.inputs()
    q, k, v, g = (jnp.asarray(given[name]) for name in "qkvg")
    heads = {"num_heads": recorded.HEADS, "num_kv_heads": recorded.KV_HEADS}
    mixer = layers.ForgettingAttention(recorded.FEATURES, window=window, rngs=nnx.Rngs(0), **heads)
    # Tokens that are the gates before the sigmoid.
    assign(
        mixer, {"forget.kernel": jnp.eye(recorded.FEATURES, recorded.HEADS), "forget.bias": jnp.zeros(recorded.HEADS)}
    )
    x = jnp.pad(-jnp.log(jnp.expm1(-g)), ((0, 0), (0, 0), (0, recorded.FEATURES - recorded.HEADS)))
    got = mixer.core(q, k, v, x.astype(jnp.float32), Tokens())
    difference = relative(got, ARRAYS[f"forgetting/{window}"])
    reference = f"flash-linear-attention, naive_forgetting_attn, window {window}"
    note(record_property, "forgetting_attention", reference, "recorded", 0, difference)


@pytest.mark.parametrize("form", ["whole", "decomposed"])
def test_manhattan_attention(form: str, record_property: Any) -> None:
    state = recorded.weights()
    mixer = layers.ManhattanAttention(
        recorded.FEATURES, num_heads=recorded.HEADS, decomposed=form == "decomposed", decay_range=recorded.RANGE,
        rngs=nnx.Rngs(0)
    )  # fmt: skip
    weights = {}
    for ours, theirs in recorded.NAMES.items():
        kernel = state[f"{theirs}.weight"]
        weights[f"{ours}.kernel"] = kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T
        weights[f"{ours}.bias"] = state[f"{theirs}.bias"]
    assert weights.keys() == layers.flatten(mixer).keys()
    assign(mixer, {name: jnp.asarray(w) for name, w in weights.items()})
    graphdef, params = nnx.split(mixer)
    got, pull = jax.vjp(jax.jit(lambda x: nnx.merge(graphdef, params)(x)), jnp.asarray(recorded.inputs()["map"]))
    found = {"out": got, "gradient": pull(jnp.cos(got))[0]}
    difference = max(relative(x, ARRAYS[f"manhattan/{form}/{name}"]) for name, x in found.items())
    note(record_property, "manhattan", f"github.com/qhfan/RMT 32ea2141, {form}", "recorded", len(state), difference)


@pytest.mark.parametrize("view", recorded.VIEWS)
def test_lookhere(view: str, record_property: Any) -> None:
    """The scores' penalties and fields of view, with a class token, which the authors give neither."""
    num_heads, (rows, columns), dim = recorded.VIEWS[view], recorded.GRID, 4
    mixer = layers.DirectedAttention(
        num_heads * dim, num_heads=num_heads, fields=view.split("-"), slope=0.7, layer_slopes=(1.5, 0.5), index=1,
        depth=5,
        rngs=nnx.Rngs(0),
    )  # fmt: skip
    length = 1 + rows * columns
    rng = seeded.generator(view, 1)
    q, k, v = (rng.standard_normal((1, length, num_heads, dim)).astype(np.float32) for _ in "qkv")
    got = mixer.core(
        *map(jnp.asarray, (q, k, v)), jnp.zeros((1, length, num_heads * dim)), Tokens(grid=(rows, columns))
    )
    penalty = np.pad(0.7 * 1.25 * ARRAYS[f"lookhere/{view}"], ((0, 0), (1, 0), (1, 0)))
    weights = np.exp(np.einsum("bqhd,bkhd->bhqk", q, k, dtype=np.float64) / dim**0.5 - penalty)
    want = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)
    reference = f"github.com/GreenCUBIC/lookhere 641deab8, {view}"
    note(record_property, "lookhere", reference, "recorded", 0, relative(got, want))


@pytest.mark.parametrize("choice", ["random", "first"])
def test_bigbird(choice: str, record_property: Any) -> None:
    """With the same random blocks, and as transformers' layer is in evaluation; the gradient of the input too."""
    transformers = pytest.importorskip("transformers", reason="the reference implementation needs transformers")
    from transformers.models.big_bird import modeling_big_bird

    from tests.references.live import randomize, torch

    features, heads, block, random, length = 16, 2, 4, 2, 44
    config = transformers.BigBirdConfig(
        hidden_size=features, num_attention_heads=heads, block_size=block, num_random_blocks=random,
        max_position_embeddings=64
    )  # fmt: skip
    theirs = modeling_big_bird.BigBirdBlockSparseAttention(config)
    randomize(theirs)
    ours = layers.BigBirdAttention(
        features, num_heads=heads, block=block, random=random, choice=choice, out_bias=False, rngs=nnx.Rngs(0)
    )
    if choice == "random":
        drawn = np.asarray(ours.routes(length // block, jnp.array([length // block - 1])))[0, :, 1:-1, 5:]
        assert (drawn > 0).all()
        assert (drawn < length // block - 1).all()
        near = drawn - np.arange(1, length // block - 1)[:, None]
        assert (abs(near) > 1).all()
        assert (drawn[..., 0] != drawn[..., 1]).all()
        assert len(np.unique(drawn)) == length // block - 2
        theirs._bigbird_block_rand_mask_with_head = lambda **_: list(drawn)
    weights = {"out.kernel": np.eye(features, dtype=np.float32)}
    for name in ("query", "key", "value"):
        layer = theirs.get_submodule(name)
        weights |= {f"{name}.kernel": layer.weight.detach().numpy().T, f"{name}.bias": layer.bias.detach().numpy()}
    assign(ours, {name: jnp.asarray(value) for name, value in weights.items()})
    mask = np.arange(length) < np.array([length, length - 3])[:, None]
    x = 2 * np.random.default_rng(0).standard_normal((2, length, features)).astype(np.float32)
    given = torch.from_numpy(x).requires_grad_()
    blocked, band, from_mask, to_mask = modeling_big_bird.BigBirdModel.create_masks_for_block_sparse_attn(
        torch.from_numpy(mask.astype(np.float32)), block
    )
    want = theirs(given, band, from_mask, to_mask, blocked, blocked)[0] * torch.from_numpy(mask)[..., None]
    torch.sin(want).sum().backward()
    graphdef, params = nnx.split(ours)

    def run(x: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, params)(x, jnp.asarray(mask)) * mask[..., None]

    got, pull = jax.vjp(jax.jit(run), jnp.asarray(x))
    difference = max(relative(got, want.detach().numpy()), relative(pull(jnp.cos(got))[0], given.grad.numpy()))
    reference = f"transformers {transformers.__version__} BigBirdBlockSparseAttention, {choice} blocks"
    note(record_property, "bigbird", reference, "live", len(weights) - 1, difference)


def test_penalties_can_be_rounded_to_bfloat16() -> None:
    """As LookHere's authors keep them."""
    rows = np.random.default_rng(0).uniform(0, 2, 12).astype(np.float32)[:, None]
    q, k = np.arange(12)[:, None], np.arange(12)[None]
    exact, rounded = (
        -np.asarray(jax.jit(GridPenalty(4, "euclidean", 0, rounded))(np.zeros((12, 12), np.float32), 0, q, k, rows))
        for rounded in (False, True)
    )
    np.testing.assert_array_equal(rounded, np.asarray(jnp.asarray(exact).astype(jnp.bfloat16), np.float32))
    assert (rounded != exact).any()
