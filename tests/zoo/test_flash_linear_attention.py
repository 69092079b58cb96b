"""The delta rule's language models have flash-linear-attention's names, shapes and sizes, and its files go in and out."""

from __future__ import annotations

import numpy as np
import pytest

import zoo
from layers import parameter_count
from layers.state import flatten
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
LAYERS = {
    "delta_net_340m": _PLAIN,
    "gated_delta_net_340m": _WIDE | {"a_proj": (2, 64), "A_log": (2,), "dt_bias": (2,)},
    "delta_product_340m": _WIDE | _STEPS,
}
OPTIONS = {"gated_delta_net_340m": {"head_dim": 32}, "delta_product_340m": {"value_expansion": 2.0}}


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
            f"{block}.attn.{part}" + ("" if part in ("A_log", "dt_bias") else ".weight"): shape
            for part, shape in LAYERS[name].items()
        }
        shapes |= {f"{block}.{norm}_norm.weight": (64,) for norm in ("attn", "mlp")}
        shapes |= {
            f"{block}.mlp.{part}_proj.weight": (64, 256) if part == "down" else (256, 64)
            for part in ("gate", "up", "down")
        }
    return shapes


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
        flatten(model)["blocks.1.mixer.key.kernel"][...], weights["model.layers.1.attn.k_proj.weight"].T
    )


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
        assert abs(parameter_count(abstract(variant(name), variant(name).config)) / size - 1) < 0.03
