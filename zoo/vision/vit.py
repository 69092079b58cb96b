"""ViT: An Image is Worth 16x16 Words (Dosovitskiy et al., 2021), and all models that are it with other hyper-parameters.

    image -> patches -> linear -> + positions, class token -> blocks of (attention, MLP) -> norm -> class token -> linear

DeiT (Touvron et al., 2021) and DeiT III (2022), CLIP's and SigLIP's image towers, DINOv2 (Oquab et al., 2023) and its
register tokens (Vision Transformers Need Registers, Darcet et al., 2024), I-JEPA, RADIO, TIPS. Names are timm's
(1.0.31), and say what a model is; :func:`_overrides` reads them.

Not here, because they need another block: parallel branches (xp, 18x2, pwee), differential attention (dwee,
dlittle, dpwee), norms after the residual branches (rpn).
"""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp

from zoo.backbones.isotropic import Isotropic, IsotropicConfig
from zoo.naming import Each, Naming, Rearrange, Split, Unstack
from zoo.registry import Variant, one_of, register
from zoo.vision.releases import STATISTICS
from zoo.vision.vit_releases import RELEASES

# Features, blocks, heads, and the hidden width of the MLP / features where that is not 4.
SIZES: dict[str, tuple[float, ...]] = {
    "tiny": (192, 12, 3),
    "wee": (256, 14, 4, 5.0),
    "xsmall": (256, 10, 4),
    "little": (320, 14, 5, 5.6),
    "small": (384, 12, 6),
    "medium": (512, 12, 8),
    "mediumd": (512, 20, 8),
    "betwixt": (640, 12, 10),
    "base": (768, 12, 12),
    "so150m": (896, 18, 14, 2.572),
    "so150m2": (832, 21, 13, 34 / 13),
    "large": (1024, 24, 16),
    "intern300m": (1024, 24, 16),
    "so400m": (1152, 27, 16, 3.7362),
    "huge": (1280, 32, 16),
    "giant": (1408, 40, 16, 48 / 11),
    "giantopt": (1536, 40, 16),
    "gigantic": (1664, 48, 16, 64 / 13),
}

# Braces are alternatives.
NAMES = """
vit_tiny_patch16_{224,384} vit_small_patch8_224 vit_{small,base}_patch{16,32}_{224,384} vit_base_patch8_224
vit_large_patch{16,32}_{224,384} vit_{large,huge,giant,gigantic}_patch14_224 vit_base_patch16_224_miil vit_small_patch16_36x1_224
vit_base_patch16_plus_240 vit_base_patch32_plus_256 vit_medium_patch16_gap_{240,256,384} vit_betwixt_patch16_gap_256
vit_{base,giant}_patch16_gap_224 vit_huge_patch14_gap_224 vit_huge_patch16_gap_448
vit_{xsmall,medium}_patch16_clip_224 vit_{medium,betwixt}_patch32_clip_224 vit_base_patch32_clip_{224,256,384,448}
vit_base_patch16_clip_{224,384} vit_base_patch16_plus_clip_240 vit_large_patch14_clip_{224,336} vit_huge_patch14_clip_{224,336,378}
vit_giant_patch14_clip_224 vit_gigantic_patch14_clip_{224,378} vit_base_patch{16,32}_clip_quickgelu_224
vit_large_patch14_clip_quickgelu_{224,336} vit_huge_patch14_clip_quickgelu_{224,378} vit_gigantic_patch14_clip_quickgelu_224
vit_{small,base,large,giant}_patch14_{dinov2,reg4_dinov2} vit_{base,large,so400m,giant}_patch14_reg1_tipsv2
vit_{base,large,huge,giant}_patch16_radio_v3 vit_{so400m,huge}_patch16_radio_v4 vit_intern300m_patch14_448
vit_base_patch32_{siglip,siglip_gap}_256 vit_base_patch16_{siglip,siglip_gap}_{224,256,384,512}
vit_large_patch16_{siglip,siglip_gap}_{256,384,512} vit_so400m_patch14_siglip_{224,378} vit_so400m_patch14_siglip_gap_{224,378,448,896}
vit_so400m_patch16_{siglip,siglip_gap}_{256,384,512} vit_giantopt_patch16_{siglip,siglip_gap}_{256,384}
vit_{wee,little,medium,betwixt}_patch16_reg1_gap_256 vit_{little,medium,mediumd,betwixt,base}_patch16_reg4_gap_256
vit_{mediumd,betwixt}_patch16_reg4_gap_384 vit_so150m_patch16_{reg4_map_256,reg4_gap_256,reg4_gap_384} vit_so150m2_patch16_reg1_gap_{256,384,448}
deit_{tiny,small,base}_patch16_224 deit_base_patch16_384 deit_{tiny,small,base}_distilled_patch16_224 deit_base_distilled_patch16_384
deit3_{small,medium,base,large}_patch16_224 deit3_{small,base,large}_patch16_384 deit3_huge_patch14_224
"""


def expand(names: str) -> list[str]:
    """Names with braces written out: "a_{b,c}" is "a_b" and "a_c"."""
    done, todo = [], names.split()
    while todo:
        name = todo.pop(0)
        match = re.search(r"\{([^}]*)\}", name)
        if match is None:
            done.append(name)
        else:
            todo[:0] = [name[: match.start()] + choice + name[match.end() :] for choice in match[1].split(",")]
    return done


def _overrides(name: str) -> dict[str, Any]:
    """The meaning of a model's name."""
    words = set(name.split("_"))
    family, size = name.split("_")[:2]
    features, depth, heads, *ratio = SIZES[size]
    patch = int(re.search(r"_patch(\d+)", name)[1])  # type: ignore[index]
    registers = next((int(word[3:]) for word in words if re.fullmatch(r"reg\d", word)), 0)
    resolutions = [int(word) for word in name.split("_") if word.isdigit()]
    c: dict[str, Any] = {"features": features, "depth": depth, "num_heads": heads, "patch_size": patch, "registers": registers}
    c |= {"mlp_ratio": ratio[0]} if ratio else {}
    c |= {"image_size": resolutions[0]} if resolutions else {}
    if registers:
        c |= {"prefix_positions": "none"}
    if words & {"distilled"}:
        c |= {"distilled": True}
    if family == "deit3":
        c |= {"layer_scale": 1e-6, "prefix_positions": "none"}
    if words & {"plus"}:
        c |= {"features": 896, "num_heads": 14} | ({} if words & {"clip"} else {"layer_scale": 1e-5})
    if words & {"36x1"}:
        c |= {"depth": 36, "layer_scale": 1e-5}
    if words & {"miil"}:
        c |= {"qkv_bias": False}
    if words & {"clip"}:
        c |= {"pre_norm": True, "norm_epsilon": 1e-5} | ({"mlp": "quick_gelu"} if words & {"quickgelu"} else {})
    if words & {"dinov2", "tipsv2"}:
        c |= {"layer_scale": 1e-5, "image_size": 518} if words & {"dinov2"} else {"layer_scale": 1.0, "image_size": 448}
        c |= {"features": 1536, "num_heads": 24, "mlp": "swiglu", "mlp_ratio": 8 / 3} if size == "giant" else {}
    if words & {"dinov2"}:
        c |= {"antialias": bool(words & {"reg4"})}  # the authors began to antialias with the registers
    if words & {"radio"}:
        c |= {"image_size": 512, "registers": 7 if words & {"v3"} else 9, "prefix_positions": "none", "final_norm": False}
        c |= {"layer_scale": 1e-5} if size in ("base", "large") else {}
        c |= {"features": 1536, "num_heads": 24, "mlp_ratio": 4.0} if size == "giant" else {}
    if size == "so400m" and words & {"radio", "tipsv2"}:
        c |= {"mlp_ratio": 4304 / 1152}
    if size == "intern300m":
        c |= {"layer_scale": 0.1, "final_norm": False}
    if words & {"gap", "map", "siglip"}:
        c |= {"class_token": False, "pool": "attention" if words & {"map", "siglip"} and not words & {"gap"} else "average"}
    if words & {"siglip"}:
        new = size == "giantopt" or patch == 32 or (size, c["image_size"]) == ("large", 512) or (size, patch) == ("so400m", 16)
        c |= {"mlp": "gelu_tanh"} if new else {}
    elif words & {"gap"} and registers and size != "so150m":
        c |= {"norm_after_pool": True} | ({} if size == "base" else {"layer_scale": 1e-5})
    elif words & {"gap"} and size in ("medium", "betwixt"):
        c |= {"qkv_bias": False, "layer_scale": 1e-6}
    elif words & {"gap"} and size == "base":
        c |= {"num_heads": 16}
    if size in ("so150m", "so150m2"):
        c |= {"prefix_positions": "all"} | ({"qkv_bias": False} if size == "so150m2" else {})
    unreleased = 0 if words & {"gap"} and size in ("huge", "giant") else 1000  # those of I-JEPA have no classifier
    return c | {"num_classes": next((release.classes for release in RELEASES.get(name, {}).values()), unreleased)}


VARIANTS: dict[str, dict[str, Any]] = {name: _overrides(name) for name in expand(NAMES)} | {
    "vit_nano_patch4_32": {"image_size": 32, "patch_size": 4, "features": 64, "depth": 6, "num_heads": 4, "mlp_ratio": 2.0},
}

# Of timm 1.0.31; the tests compare the sizes of all variants with timm's.
PARAMETERS = {
    "vit_tiny_patch16_224": 5_717_416,
    "vit_small_patch16_224": 22_050_664,
    "vit_base_patch16_224": 86_567_656,
    "vit_large_patch16_224": 304_326_632,
    "deit_tiny_patch16_224": 5_717_416,
    "deit_small_patch16_224": 22_050_664,
    "deit_base_patch16_224": 86_567_656,
    "vit_small_patch14_reg4_dinov2": 22_057_344,
}

_TOKENS = Rearrange("1 n d -> n d")
_POSITIONS = (("prefix_position", "position.table"), Split(1), Each((_TOKENS, Rearrange("1 (h w) d -> h w d"))))
_QUERY_KEY_VALUE = ("blocks.{i}.mixer.query", "blocks.{i}.mixer.key", "blocks.{i}.mixer.value")
_TABLES = ("position.table",)


def _timm(up: str = "fc1", down: str = "fc2", registers: str = "reg_token") -> list[tuple[Any, ...]]:
    """timm's names; Facebook's differ in few."""
    return [
        ("patch_embed.proj", "patch_embed"),
        ("cls_token", "class_token", _TOKENS),
        ("dist_token", "distillation_token", _TOKENS),
        (registers, "register_tokens", _TOKENS),
        ("mask_token", "mask_token"),
        ("pos_embed", *_POSITIONS),
        ("norm_pre", "pre_norm"),
        ("blocks.{i}.norm1", "blocks.{i}.mixer_norm"),
        ("blocks.{i}.attn.qkv", _QUERY_KEY_VALUE, Split()),
        ("blocks.{i}.attn.q_norm", "blocks.{i}.mixer.query_norm"),
        ("blocks.{i}.attn.k_norm", "blocks.{i}.mixer.key_norm"),
        ("blocks.{i}.attn.proj", "blocks.{i}.mixer.out"),
        ("blocks.{i}.ls1.gamma", "blocks.{i}.mixer_scale.scale"),
        ("blocks.{i}.norm2", "blocks.{i}.channel_norm"),
        (f"blocks.{{i}}.mlp.{up}", ("blocks.{i}.channel.gate", "blocks.{i}.channel.up"), Split()),
        (f"blocks.{{i}}.mlp.{down}", "blocks.{i}.channel.down"),
        ("blocks.{i}.ls2.gamma", "blocks.{i}.channel_scale.scale"),
        ("norm", "norm"),
        ("fc_norm", "pool_norm"),
        ("attn_pool.latent", "attention_pool.latent", _TOKENS),
        ("attn_pool.q", "attention_pool.attention.query"),
        ("attn_pool.kv", ("attention_pool.attention.key", "attention_pool.attention.value"), Split()),
        ("attn_pool.proj", "attention_pool.attention.out"),
        ("attn_pool.norm", "attention_pool.norm"),
        ("attn_pool.mlp.fc1", "attention_pool.mlp.up"),
        ("attn_pool.mlp.fc2", "attention_pool.mlp.down"),
        ("head", "head"),
        ("head_dist", "distilled_head"),
    ]


def _transformers(prefix: str, block: list[tuple[Any, ...]], heads: tuple[str, ...] = ()) -> list[tuple[Any, ...]]:
    """The names on disk of the library transformers (in memory its version 5 has others)."""
    inside = [
        ("attention.output.dense", "mixer.out"),
        *[(f"attention.attention.{part}", f"mixer.{part}") for part in ("query", "key", "value")],
        *block,
    ]
    return [
        (f"{prefix}embeddings.patch_embeddings.projection", "patch_embed"),
        (f"{prefix}embeddings.cls_token", "class_token", _TOKENS),
        (f"{prefix}embeddings.distillation_token", "distillation_token", _TOKENS),
        (f"{prefix}embeddings.register_tokens", "register_tokens", _TOKENS),
        (f"{prefix}embeddings.mask_token", "mask_token"),
        (f"{prefix}embeddings.position_embeddings", *_POSITIONS),
        *[(f"{prefix}encoder.layer.{{i}}.{theirs}", _blocks(ours), *operations) for theirs, ours, *operations in inside],
        (f"{prefix}layernorm", "norm"),
        (f"{prefix}pooler.dense", "pooler"),
        *zip(heads, ("head", "distilled_head"), strict=False),
    ]


def _tower(prefix: str) -> list[tuple[Any, ...]]:
    """The same library's names of the image towers of CLIP and SigLIP."""
    block, pool = f"{prefix}encoder.layers.{{i}}", f"{prefix}head"
    parts = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
    pooled = tuple(f"attention_pool.attention.{part}" for part in ("query", "key", "value"))
    places = Rearrange("(h w) d -> h w d")
    return [
        (f"{prefix}embeddings.patch_embedding", "patch_embed"),
        (f"{prefix}embeddings.class_embedding", "class_token", Rearrange("d -> 1 d")),
        (f"{prefix}embeddings.position_embedding.weight", ("prefix_position", "position.table"), Split(), Each((None, places))),
        (f"{prefix}pre_layrnorm", "pre_norm"),  # spelled so in the released files
        (f"{block}.layer_norm1", "blocks.{i}.mixer_norm"),
        *[(f"{block}.self_attn.{theirs}", f"blocks.{{i}}.mixer.{ours}") for theirs, ours in parts.items()],
        (f"{block}.layer_norm2", "blocks.{i}.channel_norm"),
        (f"{block}.mlp.fc1", "blocks.{i}.channel.up"),
        (f"{block}.mlp.fc2", "blocks.{i}.channel.down"),
        (f"{prefix}post_layernorm", "norm"),
        (f"{pool}.probe", "attention_pool.latent", _TOKENS),
        (f"{pool}.attention.in_proj_weight", tuple(f"{part}.kernel" for part in pooled), Split(), Rearrange("o i -> i o")),
        (f"{pool}.attention.in_proj_bias", tuple(f"{part}.bias" for part in pooled), Split()),
        (f"{pool}.attention.out_proj", "attention_pool.attention.out"),
        (f"{pool}.layernorm", "attention_pool.norm"),
        (f"{pool}.mlp.fc1", "attention_pool.mlp.up"),
        (f"{pool}.mlp.fc2", "attention_pool.mlp.down"),
        ("visual_projection", "head"),
    ]


def _blocks(names: str | tuple[str, ...]) -> str | tuple[str, ...]:
    return f"blocks.{{i}}.{names}" if isinstance(names, str) else tuple(f"blocks.{{i}}.{name}" for name in names)


_VIT_BLOCK = [
    ("layernorm_before", "mixer_norm"),
    ("layernorm_after", "channel_norm"),
    ("intermediate.dense", "channel.up"),
    ("output.dense", "channel.down"),
]


def _dinov2_block(up: str, down: str) -> list[tuple[Any, ...]]:
    return [
        ("norm1", "mixer_norm"),
        ("norm2", "channel_norm"),
        ("layer_scale1.lambda1", "mixer_scale.scale"),
        ("layer_scale2.lambda1", "channel_scale.scale"),
        (f"mlp.{up}", ("channel.gate", "channel.up"), Split()),
        (f"mlp.{down}", "channel.down"),
    ]


def _jax_attention(theirs: str, ours: str, first: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Attention in Flax Linen's layout: heads on an axis of their own."""
    parts = []
    for part in ("query", "key", "value"):
        parts += [
            (f"{theirs}/{part}/kernel", f"{ours}.{part}.kernel", *first, Rearrange("d h k -> d (h k)", h="num_heads")),
            (f"{theirs}/{part}/bias", f"{ours}.{part}.bias", *first, Rearrange("h k -> (h k)", h="num_heads")),
        ]
    return [
        *parts,
        (f"{theirs}/out/kernel", f"{ours}.out.kernel", *first, Rearrange("h k d -> (h k) d", h="num_heads")),
        (f"{theirs}/out/bias", f"{ours}.out.bias", *first),
    ]


def _jax(block: str, attention: str, norm: str, mlp: str, position: str) -> list[tuple[Any, ...]]:
    """Names of the .npz files of vision_transformer and big_vision; one ``block`` for all layers holds them stacked."""
    block = f"Transformer/{block}"
    first = () if "{i}" in block else (Unstack(),)
    return [
        ("embedding", "patch_embed"),
        ("cls", "class_token", _TOKENS),
        (position, *_POSITIONS),
        (f"{block}/LayerNorm_0", "blocks.{i}.mixer_norm", *first),
        *_jax_attention(f"{block}/{attention}", "blocks.{i}.mixer", first),
        (f"{block}/{norm}", "blocks.{i}.channel_norm", *first),
        (f"{block}/{mlp}/Dense_0", "blocks.{i}.channel.up", *first),
        (f"{block}/{mlp}/Dense_1", "blocks.{i}.channel.down", *first),
        ("Transformer/encoder_norm", "norm"),
        ("MAPHead_0/probe", "attention_pool.latent", _TOKENS),
        *_jax_attention("MAPHead_0/MultiHeadDotProductAttention_0", "attention_pool.attention", ()),
        ("MAPHead_0/LayerNorm_0", "attention_pool.norm"),
        ("MAPHead_0/MlpBlock_0/Dense_0", "attention_pool.mlp.up"),
        ("MAPHead_0/MlpBlock_0/Dense_1", "attention_pool.mlp.down"),
        ("pre_logits", "pooler"),
        ("head", "head"),
    ]


# big_vision's class token has no position of its own.
_UNPLACED = {"prefix_positions": "none"}
_BIG = ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0", "pos_embedding")

JAX_RULES: dict[str, Naming] = {
    "vision_transformer": Naming(
        _jax("encoderblock_{i}", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3", "Transformer/posembed_input/pos_embedding"), "jax", _TABLES
    ),
    "big_vision": Naming(_jax("encoderblock_{i}", *_BIG), "jax", _TABLES, _UNPLACED),
    "big_vision_scan": Naming(_jax("encoderblock", *_BIG), "jax", _TABLES, _UNPLACED),
}


def _library(prefix: str, block: list[tuple[Any, ...]], heads: tuple[str, ...] = ("classifier",), **whole: Any) -> dict[str, Naming]:
    """A classifier of transformers and, under "bare", the model inside."""
    names = _transformers(prefix, block, heads)
    return {
        "transformers": Naming(names, tables=_TABLES, prefix=prefix, config=whole),
        "bare": Naming(_transformers("", block), tables=_TABLES, config=whole),
    }


RULES: dict[str, Naming] = {"timm": Naming(_timm(), tables=_TABLES), **_library("vit.", _VIT_BLOCK), **JAX_RULES}

# DeiTForImageClassification has the second token, but not its head.
DISTILLED_RULES: dict[str, Naming] = {
    "timm": RULES["timm"],
    **_library("deit.", _VIT_BLOCK, ("cls_classifier", "distillation_classifier")),
    "transformers_single": Naming(_transformers("deit.", _VIT_BLOCK, ("classifier",)), tables=_TABLES, config={"distilled_head": False}),
}

# The projection of CLIP has no bias; where the model has no projection, there is nothing to differ in.
TOWER_RULES: dict[str, Naming] = {
    "timm": RULES["timm"],
    "transformers": Naming(
        _tower("vision_model."), tables=_TABLES, config={"head_bias": False}, ignore=("text_{part}.**", "logit_{part}", "vision_model.embeddings.position_ids")
    ),
    "bare": Naming(_tower(""), tables=_TABLES, config={"head_bias": False}),
    **{name: RULES[name] for name in ("big_vision", "big_vision_scan")},
}


def _dinov2_rules(mlp: str, registers: int) -> dict[str, Naming]:
    """DINOv2: the authors' files also hold a mask token and, with registers, a position of the class token, which timm adds to it."""
    gated = mlp == "swiglu"
    whole: dict[str, Any] = {"mask_token": True, "prefix_positions": "class"}
    names = _timm(*(("w12", "w3") if gated else ("fc1", "fc2")), "register_tokens")
    block = _dinov2_block(*(("weights_in", "weights_out") if gated else ("fc1", "fc2")))
    prefix = "dinov2_with_registers." if registers else "dinov2."
    return {"timm": RULES["timm"], "dinov2": Naming(names, tables=_TABLES, config=whole), **_library(prefix, block, **whole)}


def _rules(name: str, overrides: dict[str, Any]) -> dict[str, Naming]:
    if "dinov2" in name:
        return _dinov2_rules(overrides.get("mlp", "gelu"), overrides.get("registers", 0))
    if overrides.get("distilled"):
        return DISTILLED_RULES
    if "_clip_" in name or "_siglip_" in name:
        return TOWER_RULES
    plain = overrides.get("registers", 0) == 0 and not {"pre_norm", "layer_scale", "qkv_bias"} & set(overrides)
    return RULES if plain else {"timm": RULES["timm"]}


_ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "quick_gelu": "quick_gelu"}

DESCRIBED: dict[str, Any] = {
    "norm_epsilon": lambda config: config.get("layer_norm_eps"),
    "num_heads": lambda config: config.get("num_attention_heads"),
    "mlp": lambda config: "swiglu" if config.get("use_swiglu_ffn") else one_of(config, "hidden_act", _ACTIVATIONS),
}


def _register() -> None:
    for name, overrides in VARIANTS.items():
        releases = RELEASES.get(name, {})
        mean, std = STATISTICS["imagenet" if overrides.get("num_classes") == 0 else "half"]
        preprocess: dict[str, Any] = {} if releases else {"mean": mean, "std": std, "crop_fraction": 0.9}
        config, rules = IsotropicConfig(**overrides), _rules(name, overrides)
        papers = (156,) if "reg" in name else ()
        own = name == "vit_nano_patch4_32"
        kept: dict[str, Any] = {"parameters": PARAMETERS.get(name), "published": not own, "described": DESCRIBED, "paper": papers}
        register(Variant(name, Isotropic, config, "vit", rules, releases, preprocess, **kept))


_register()


def outlier_norms(model: Isotropic, images: jax.Array, *, cutoff: float = 150.0) -> tuple[jax.Array, jax.Array]:
    """Norms of the patch tokens that leave the last block, and which share of them are outliers.

    Vision Transformers Need Registers (Darcet et al., 2024), section 2.1: large models without registers
    turn a few per cent of their patch tokens into stores of global information, seen as norms far above
    the others'. With registers there are none.

    Args:
      model: any isotropic model.
      images: (batch, height, width, channels).
      cutoff: norm above which a token counts; 150 is the authors', for DINOv2's giant model.

    Returns:
      Norms (batch, rows, columns) in float32, and the share of all patch tokens above ``cutoff``, in [0, 1].
    """
    norms = jnp.linalg.norm(model.features(images, [-1])[0].astype(jnp.float32), axis=-1)
    return norms, jnp.mean(norms > cutoff)
