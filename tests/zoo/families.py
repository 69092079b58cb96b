"""A tiny variant of every registered family, and which families stand for others in tests."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import zoo
from layers import flatten
from layers.initializers import lecun_normal
from tests.compilation import called
from zoo.backbones.causal import Causal
from zoo.backbones.encoder import Encoder
from zoo.backbones.encoder_decoder import EncoderDecoder
from zoo.backbones.isotropic import Isotropic
from zoo.backbones.pyramid import Pyramid
from zoo.creation import create_abstract
from zoo.language.pointer_network import PointerNetwork
from zoo.registry import Variant, abstract, variant
from zoo.series.hiss import HiSS

# What makes a variant tiny, as far as its architecture has the field.
COMMON: dict[str, Any] = {
    "num_classes": 5, "image_size": 32, "patch_size": 8, "vocab_size": 11, "features": 16, "depth": 2, "num_heads": 2,
    "state_dim": 8, "head_dim": 8
}  # fmt: skip
# What a family needs beyond that.
TINY: dict[str, dict[str, Any]] = {
    # The class token alone sees nothing of the last block's convolution, nor the patches of its scores.
    "agent": {"pool": "token_and_average"},
    "agent_cswin": {"features": (8, 16), "depths": (2, 1), "num_heads": (2, 2)},
    "inline": {"pool": "token_and_average"},
    "inline_cswin": {"features": (8, 16), "depths": (2, 1), "num_heads": (2, 2)},
    # Few small embeddings through small weights would leave scores whose gradients float16 rounds to 0.
    "albert": {"embedding_features": 512},
    # The first token alone sees nothing of the random blocks, nor does a sequence of few blocks have any.
    "bigbird": {"block": 2, "pool": "average", "pooler": False},
    "biformer": {
        "stem": (8,),
        "features": (8, 16),
        "depths": (2, 1),
        "num_heads": (2, 2),
        "regions": 2,
        "topk": (2, None),
        "dense_heads": 2,
    },
    "block_recurrent_transformer": {"window": 6, "states": 3, "depth": 3},
    "cait": {"class_blocks": 1, "layer_scale": 0.1},
    # The compression has a loss of its own else.
    "compressive_transformer": {"segment": 8, "memory": 8, "compressed": 4, "end_to_end": True},
    # The gradient behind a layer scale of 1e-6 is less than float16 can hold.
    "convnext": {"features": (8, 16), "depths": (1, 2), "num_heads": (2, 2), "kernel_size": 3, "layer_scale": 1.0},
    "cswin": {"features": (8, 16), "depths": (2, 1), "num_heads": (2, 2)},
    # The norm inside its memories magnifies rounding, most of all behind the small weights of Memora.
    "miras": {"memory": "yaad"},
    # The architecture's initial weights suit hundreds of features: three of them multiply, and the gradient is less
    # than float16 can hold.
    "focalnet": {"features": (8, 16), "depths": (1, 2), "num_heads": (2, 2), "mixer": "focal_modulation"},
    # A gate that starts at 1 and weights of 0.02 would leave next to nothing of other tokens.
    "gmlp": {"mixer": {"name": "spatial_gating", "gate_init": lecun_normal, "kernel_init": lecun_normal}},
    "dependencyvit": {"layer_scale": 0.1},
    "griffin": {"attention_every": 2},
    "hiss": {"low_features": 8, "low_depth": 2, "ratio": 4, "in_features": 3},
    "halonet": {"stem": (4, 4, 8), "features": (16, 32), "widths": (8, 16), "depths": (1, 2), "num_heads": (2, 2)},
    "hvt": {"patch_size": 4, "depth": 4, "pool_every": 2},
    "nystromformer": {"landmarks": 4, "kernel_size": 5},
    "lookhere": {"fields": ("triangles",)},
    # Initial weights of 0.02 suit hundreds of features: of few, a product of three leaves next to nothing.
    "mambaout": {
        "features": (8, 16),
        "depths": (1, 2),
        "num_heads": (2, 2),
        "mixer": {"name": "gated_convolution", "kernel_init": lecun_normal},
    },
    # What the overview's classifier says is reported in training alone.
    "overlock": {
        "features": (8, 16),
        "depths": (2, 1),
        "num_heads": (2, 2),
        "focus_depths": (2, 1),
        "focus_heads": (1, 2),
        "kernel_sizes": (7, 5),
        "overview_head": False,
    },
    "nat": {"features": (8, 16), "depths": (2, 1), "num_heads": (2, 2)},
    "ravlt": {"features": (8, 16), "depths": (2, 1), "num_heads": (2, 2)},
    "l2vit": {"features": (8, 16), "depths": (2, 1), "num_heads": (2, 2), "window": 4},
    "rmt": {"features": (8, 16), "depths": (2, 1), "num_heads": (2, 2)},
    # The first token alone would see nothing of the last block's local projections.
    "longformer": {"pool": "average", "window": 6, "max_global": 2},
    "landmark": {"period": 5},
    "memmamba": {"notes": 3, "note_dim": 8, "window": 2, "layers": 1, "every": 2},
    "longnet": {"segments": (4, 8, 16), "rates": (1, 2, 4)},
    "lsg": {"block": 4, "sparse_block": 4, "global_rows": 4, "num_global": 2, "pool_global": False, "pool": "average"},
    "maxvit": {"stem": 4, "features": (8, 16), "depths": (1, 2), "num_heads": (2, 2), "window": 2},
    "resnet": {"stem": (8,), "features": (16, 32), "depths": (1, 2), "num_heads": (2, 2)},
    # All of a row goes through few latents; of small weights next to nothing would come through so many maps.
    "perceiver": {"features": 16, "embedding_features": 12, "latents": 6, "key_features": 8},
    "perceiver_image": {"latents": 6, "bands": 4},
    "pvt_v1": {"patch_size": 4, "features": (8, 16), "depths": (1, 2), "num_heads": (2, 2)},
    "pvt": {"features": (8, 16), "depths": (1, 2), "num_heads": (2, 2)},
    "resmlp": {"layer_scale": 1.0},
    "rwkv6": {"zero_init": False},
    "rwkv7": {"zero_init": False},
    "swin": {"patch_size": 4, "features": (8, 16), "depths": (2, 1), "num_heads": (2, 2), "window": 4},
    "swinv2": {
        "patch_size": 4,
        "features": (8, 16),
        "depths": (2, 1),
        "num_heads": (2, 2),
        "window": 4,
        "zero_init": False,
    },
    "transformer_xl": {"segment": 8, "memory": 8},
    "transnext": {"features": (8, 16), "depths": (1, 2), "num_heads": (2, 2)},
    "vig": {"depth": 2},
    "vig_h": {"features": (8, 16), "depths": (1, 2), "num_heads": (2, 2)},
    "vir": {"layer_scale": 0.1},
    "vit_resnas": {
        "stages": (((1, 24), (3, 16)), ((3, 40), (1, 24))),
        "widths": (24,),
        "head_dims": (12, 8),
        "stem": 8,
        "depth": 4,
    },
    "routing_transformer": {
        "routed_heads": 1,
        "clusters": 3,
        "cluster_window": 12,
        "window": 8,
        "membership": "causal",
    },
}
VARIANTS = {name: variant(name) for name in zoo.list_models()}
FAMILIES = sorted({entry.family for entry in VARIANTS.values()})


def kind_of(family: str) -> type:
    entry = next(entry for entry in VARIANTS.values() if entry.family == family)
    return entry.build if isinstance(entry.build, type) else type(tiny(family))


def smallest(family: str) -> str:
    """The family's variant of least width times depth."""

    def size(entry: Variant) -> int:
        c: Any = entry.config
        return int(np.sum(c.features)) * int(np.sum(getattr(c, "depths", None) or c.depth))

    return min((entry for entry in VARIANTS.values() if entry.family == family), key=size).name


def options(family: str, **overrides: Any) -> dict[str, Any]:
    """Hyper-parameters of the tiny variant."""
    fields = {field.name for field in dataclasses.fields(VARIANTS[smallest(family)].config)}
    return {**{name: value for name, value in COMMON.items() if name in fields}, **TINY.get(family, {}), **overrides}


def make(family: str, **overrides: Any) -> nnx.Module:
    return zoo.create(smallest(family), **options(family, **overrides))


def outline(family: str, **overrides: Any) -> Any:
    """As :func:`make`, of shapes alone."""
    return create_abstract(smallest(family), **options(family, **overrides))


tiny = functools.cache(make)
IMAGE_FAMILIES = [family for family in FAMILIES if issubclass(kind_of(family), (Isotropic, Pyramid))]
ENCODERS = [family for family in FAMILIES if issubclass(kind_of(family), Encoder)]
ENCODER_DECODERS = [family for family in FAMILIES if issubclass(kind_of(family), EncoderDecoder)]
POINTERS = [family for family in FAMILIES if issubclass(kind_of(family), PointerNetwork)]
SERIES = [family for family in FAMILIES if issubclass(kind_of(family), HiSS)]
images = pytest.mark.parametrize("family", IMAGE_FAMILIES)
classifiers = pytest.mark.parametrize("family", [*IMAGE_FAMILIES, *ENCODERS])
every = pytest.mark.parametrize("family", FAMILIES)
# What is between the blocks, and a family of each whose blocks do not ask for more than any mixer gives.
BACKBONES = {Isotropic: "vit", Pyramid: "biformer", Causal: "transformer", Encoder: "bert", EncoderDecoder: "t5"}
# Families with parameters that no mixer and no layer of tests/layers/test_gradient_sums.py has: tokens, tables.
OWNERS = (
    *BACKBONES.values(), "agent", "altup", "bart", "cait", "eva", "fan", "fnet", "gpt2", "landmark", "linear_attention",
    "longformer", "lookhere", "lsg", "maxvit", "perceiver", "perceiver_image", "pointer_network", "pvt_v1", "rwkv6",
    "rwkv7", "t2t_vit",
)  # fmt: skip
# Families whose modules, the model itself apart, are all in other families too. What holds for each module and for how
# modules are joined, and is expensive to try, is tried with the others.
OF_KNOWN_PARTS = (
    "agent_cswin", "bart", "deep_transformer", "eva", "gpt2", "gpt_neo", "gptj", "inline_cswin", "jamba", "llama",
    "longvit", "pythia", "roberta", "s4d_pixels", "swin",
)  # fmt: skip
PARTS = [family for family in FAMILIES if family not in OF_KNOWN_PARTS]
of_new_parts = pytest.mark.parametrize("family", PARTS)


def inputs(family: str, size: int = 32, batch: int = 2) -> Any:
    """An array, or a tuple of those that a model is called with."""
    rng = np.random.default_rng(0)
    if family in IMAGE_FAMILIES:
        return rng.standard_normal((batch, size, size, 3)).astype(np.float32)
    if family in SERIES:
        return rng.standard_normal((batch, size, options(family)["in_features"])).astype(np.float32)
    if family in POINTERS:
        points = rng.random((batch, 10, 2), np.float32)
        return points, rng.integers(0, 11, (batch, size - 3)).astype(np.int32)
    shapes = [(batch, size), (batch, size - 3)] if family in ENCODER_DECODERS else [(batch, size)]
    tokens = tuple(rng.integers(0, 11, shape).astype(np.int32) for shape in shapes)
    return tokens if len(tokens) > 1 else tokens[0]


def shape_of(x: Any) -> tuple[int, ...]:
    """The shape of a model's inputs, or of the first of them."""
    return (x[0] if isinstance(x, tuple) else x).shape


def run(model: nnx.Module, x: Any, method: str = "__call__", **options: Any) -> Any:
    """The model's output in evaluation mode, compiled; on the host, where comparing compiles nothing."""
    copy = nnx.clone(model)
    copy.eval()
    graphdef, state = nnx.split(copy)
    return jax.device_get(jax.jit(lambda state, x: called(nnx.merge(graphdef, state), x, method, **options))(state, x))


def shallow(family: str) -> dict[str, Any]:
    """One block, or one in each of two stages."""
    return {"depths": (1, 1)} if issubclass(kind_of(family), Pyramid) else {"depth": 1}


# Pyramids that must have more than one stage.
STAGES = {"overlock": 2}


def one_stage(family: str, depth: int = 1) -> dict[str, Any]:
    """A pyramid's first stage, of ``depth`` blocks; its first ones where one is too few."""
    tiny, count = options(family), STAGES.get(family, 1)
    stages = len(tiny["depths"])
    first = {name: value[:count] for name, value in tiny.items() if isinstance(value, tuple) and len(value) == stages}
    return {**first, "depths": (depth,) * count}


@functools.cache
def least(family: str) -> dict[str, Any]:
    """The fewest blocks, of the fewest stages, that have all kinds of modules and parameters of the tiny variant."""

    def kinds(sizes: dict[str, Any]) -> set[Any]:
        model = outline(family, **sizes)
        names = {re.sub(r"\d+", "#", name) for name in flatten(model, nnx.Param)}
        return names | {type(part) for _, part in nnx.iter_modules(model)}

    if issubclass(kind_of(family), Pyramid):
        # A second stage of no blocks has what comes before them.
        smaller = [one_stage(family), {"depths": (1, 0)}, shallow(family)]
    else:
        model: Any = tiny(family)
        # What each block alone is given may be its share of something, all of it if there is one block.
        shares = isinstance(model, Causal) and model.per_block() is not None
        smaller = [{"depth": depth} for depth in (1, 2)[shares:]]
    return next((sizes for sizes in smaller if kinds(sizes) == kinds({})), {})


def counted_from_two(entry: Any) -> int:
    """Parameters of a variant if the blocks after a stage's second are as that, which many copies need not show."""
    c = entry.config
    if hasattr(c, "depths"):
        depths = {f"stages.{stage}.": depth for stage, depth in enumerate(c.depths)}
        sizes: dict[str, Any] = {"depths": tuple(min(depth, 2) for depth in c.depths)}
    else:
        depths, sizes = {"": c.depth, "decoder.": c.depth}, {"depth": min(c.depth, 2)}
        if hasattr(c, "encoder_depth"):
            depths["encoder."] = c.encoder_depth or c.depth
            sizes["encoder_depth"] = min(depths["encoder."], 2)
    leaves = flatten(abstract(entry, dataclasses.replace(c, **sizes)), nnx.Param)
    second = {name: re.match(r"((?:stages\.\d+\.|encoder\.|decoder\.)?)blocks\.1\.", name) for name in leaves}
    return sum(leaf.size * (depths[found[1]] - 1 if (found := second[name]) else 1) for name, leaf in leaves.items())


def modules(family: str) -> set[type]:
    """The classes of a family's modules, the model apart."""
    model = tiny(family)
    return {type(part) for _, part in nnx.iter_graph(model) if isinstance(part, nnx.Module) and part is not model}
