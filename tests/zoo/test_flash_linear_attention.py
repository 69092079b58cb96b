"""Models that flash-linear-attention has too have its names, shapes, sizes and outputs; its files go in and out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from layers import parameter_count
from layers.state import flatten
from tests.layers.mixer_cases import relative
from tests.references import linear_models
from tests.tiers import tiered
from tests.zoo.families import counted_from_two
from zoo.registry import abstract, variant
from zoo.weights import export, load

SIZES = {"vocab_size": 99, "features": 64, "hidden": 256, "depth": 2, "num_heads": 2}
# Of a layer of their models with these options: (out, in) of linear layers, (channels, 1, size) of convolutions.
_PLAIN = {
    "q_proj": (64, 64),
    "k_proj": (64, 64),
    "v_proj": (64, 64),
    "b_proj": (2, 64),
    "o_proj": (64, 64),
    "o_norm": (32,),
}
_PLAIN |= {"q_conv1d": (64, 1, 4), "k_conv1d": (64, 1, 4), "v_conv1d": (64, 1, 4)}
_WIDE = _PLAIN | {
    "v_proj": (128, 64),
    "v_conv1d": (128, 1, 4),
    "g_proj": (128, 64),
    "o_proj": (64, 128),
    "o_norm": (64,),
}
_STEPS = {"k_proj": (128, 64), "v_proj": (256, 64), "b_proj": (4, 64), "k_conv1d": (128, 1, 4), "v_conv1d": (256, 1, 4)}
_SQUARE = {"q_proj": (64, 64), "k_proj": (64, 64), "v_proj": (64, 64), "o_proj": (64, 64)}
LAYERS = {
    "delta_net_340m": _PLAIN,
    "gated_delta_net_340m": _WIDE | {"a_proj": (2, 64), "A_log": (2,), "dt_bias": (2,)},
    "delta_product_340m": _WIDE | _STEPS,
    "gla_1.3b": _SQUARE
    | {"q_proj": (32, 64), "k_proj": (32, 64), "g_proj": (64, 64), "g_norm_swish_gate": (32,)}
    | {"gk_proj.0": (16, 64), "gk_proj.1": (32, 16), "gk_proj.1.bias": (32,)},
    "retnet_1.3b": _SQUARE
    | {"v_proj": (128, 64), "g_proj": (128, 64), "o_proj": (64, 128), "g_norm_swish_gate": (64,)},
    "hgrn_1.3b": {"i_proj": (64, 64), "f_proj": (64, 64), "g_proj": (64, 64), "o_proj": (64, 64), "g_norm": (64,)},
    "hgrn2_1.3b": {"q_proj": (64, 64), "f_proj": (64, 64), "i_proj": (64, 64), "o_proj": (64, 64), "g_norm": (64,)},
    "gsa_1.3b": _SQUARE | {"f_proj": (32, 64), "g_norm": (64,)},
}
OPTIONS = {
    "gated_delta_net_340m": {"head_dim": 32},
    "delta_product_340m": {"value_expansion": 2.0},
    "gsa_1.3b": {"num_slots": 16},
}


def released(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a file of theirs."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embeddings.weight": (99, 64),
        "model.norm.weight": (64,),
        "lm_head.weight": (99, 64),
    }
    for i in range(2):
        block = f"model.layers.{i}"
        shapes |= {
            f"{block}.attn.{part}" + ("" if part.endswith(("A_log", "bias")) else ".weight"): shape
            for part, shape in LAYERS[name].items()
        }
        shapes |= {f"{block}.{norm}_norm.weight": (64,) for norm in ("attn", "mlp")}
        shapes |= {
            f"{block}.mlp.{part}_proj.weight": (64, 256) if part == "down" else (256, 64)
            for part in ("gate", "up", "down")
        }
    return shapes | ({"model.lower_bounds": (2, 64)} if name.startswith("hgrn") else {})


@pytest.mark.parametrize("name", LAYERS)
def test_released_names(name: str) -> None:
    rng = np.random.default_rng(0)
    weights = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in released(name).items()}
    model = load(zoo.create(name, **SIZES, **OPTIONS.get(name, {})), weights)
    exported = export(model, naming="fla")
    assert exported.keys() == weights.keys()
    for n, weight in weights.items():
        np.testing.assert_array_equal(exported[n], weight)
    np.testing.assert_array_equal(
        flatten(model)["blocks.1.mixer.out.kernel"][...], weights["model.layers.1.attn.o_proj.weight"].T
    )


def test_the_norm_may_be_named_alone(tmp_path: Path) -> None:
    """As where it is not computed together with the gate; the rest of the model is as its description says."""
    options = {"vocab_size": 11, "features": 16, "depth": 1, "num_heads": 2}
    model = zoo.create("gla_nano", **options, value_expansion=2.0, conv_size=3, norm_epsilon=1e-3, tied=False)
    zoo.save(model, tmp_path / "model.safetensors", naming="fla_unfused")
    config = {"model_type": "gla", "num_heads": 2, "expand_k": 0.5, "expand_v": 2, "norm_eps": 1e-3}
    config |= {"use_short_conv": True, "conv_size": 3, "tie_word_embeddings": False, "hidden_act": "swish"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = zoo.create("gla_nano", weights=tmp_path, **options)
    assert read.config.value_expansion == 2
    assert (read.config.conv_size, read.config.norm_epsilon, read.config.tied) == (3, 1e-3, False)
    for n, leaf in flatten(model).items():
        np.testing.assert_array_equal(flatten(read)[n], leaf)


RECORDED_OPTIONS = {
    "gsa_nano": {"num_slots": 16},
    "mom_nano": {"head_dim": 16},
    "rwkv6_nano": {"shift_rank": 32, "decay_rank": 64, "key_expansion": 0.5, "heads_epsilon": 1e-5},
    "rwkv7_nano": {"decay_rank": 64, "rate_rank": 64, "residual_rank": 16, "gate_rank": 128},
}


@pytest.mark.parametrize("name", tiered(linear_models.CASES, lambda name: name == "hgrn2_nano"))
def test_recorded_logits(name: str, record_property: Any) -> None:
    options = {**linear_models.SIZES, **RECORDED_OPTIONS.get(name, {})}
    model = zoo.create(name, **options)
    shapes = {n: x.shape for n, x in export(model, naming="fla").items()}
    model = load(model, linear_models.weights(shapes))
    graph, state = nnx.split(model)
    logits = jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, linear_models.tokens(name))
    difference = relative(logits, linear_models.load(name))
    about = {"architecture": name.removesuffix("_nano"), "kind": "recorded", "mapped": len(shapes)}
    record_property("parity", {**about, "reference": "flash-linear-attention", "difference": difference})
    assert difference < 1e-4


def test_lower_bounds_rise_from_block_to_block() -> None:
    """From 0, by shares of one that are learned; equal ones at first. Their gradient is finite at the bound of 0."""
    model = zoo.create("hgrn2_nano", **linear_models.SIZES)
    np.testing.assert_allclose(model.per_block(), np.repeat([[0], [1 / 3], [2 / 3]], 32, axis=1), rtol=1e-6)
    graph, state = nnx.split(model, nnx.Param)[:2]
    x = linear_models.tokens()[:, :5]
    gradient = jax.jit(jax.grad(lambda state: jnp.sum(jnp.sin(nnx.merge(graph, state)(x)))))(state)
    bounds = np.asarray(gradient["lower_bounds"][...])
    assert np.isfinite(bounds).all()
    assert (np.abs(bounds).max(1) > 0).all()


def counted(
    width: int, hidden: int, depth: int, keys: int, values: int, steps: int, heads: int, gate: bool, decay: bool
) -> int:
    """Parameters by hand: embedding and head of 32,000 tokens, norms, the mixer's projections and convolutions of 4,
    the MLP.
    """
    mixer = width * (keys + steps * (keys + values) + values * (1 + gate) + heads * (steps + decay))
    mixer += 4 * (keys + steps * (keys + values)) + values // heads + 2 * heads * decay
    return 2 * 32000 * width + width + depth * (mixer + 2 * width + 3 * width * hidden)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("delta_net_340m", (1024, 2816, 24, 1024, 1024, 1, 8, False, False)),
        ("delta_net_1.3b", (2048, 5632, 24, 2048, 2048, 1, 16, False, False)),
        ("gated_delta_net_340m", (1024, 2816, 21, 1536, 3072, 1, 6, True, True)),
        ("gated_delta_net_1.3b", (2048, 5632, 21, 1536, 3072, 1, 6, True, True)),
        ("delta_product_340m", (1024, 2816, 17, 1024, 1024, 2, 8, True, False)),
        ("delta_product_1.3b", (2048, 5632, 18, 2048, 2048, 2, 16, True, False)),
    ],
)
def test_parameter_counts(name: str, sizes: tuple) -> None:
    assert parameter_count(abstract(variant(name), variant(name).config)) == counted(*sizes)


def test_our_sizes_are_those_of_their_names() -> None:
    for name, size in (("delta_product_340m", 340e6), ("delta_product_1.3b", 1.3e9)):
        assert abs(counted_from_two(variant(name)) / size - 1) < 0.03
