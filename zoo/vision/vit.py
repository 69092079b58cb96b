"""ViT: An Image is Worth 16x16 Words (Dosovitskiy et al., 2021, arXiv:2010.11929), and all models that differ from it
in hyper-parameters only.

    image -> patches -> linear -> + positions, class token -> blocks of (attention, MLP) -> norm -> class token ->
    linear

DeiT (Touvron et al., 2021) and DeiT III (2022), CLIP's and SigLIP's image towers, DINOv2 (Oquab et al., 2023) and its
register tokens (Vision Transformers Need Registers, Darcet et al., 2024), I-JEPA, RADIO, TIPS. Names are timm's
(1.0.31); vit_variants.py says what they mean.

Blocks are arranged in one of three ways:

    serial    x = x + attention(norm(x)); x = x + mlp(norm(x))
    joined    x = x + attention(h) + mlp(h), h = norm(x)                  Scaling Vision Transformers to 22 Billion
                                                                          Parameters (Dehghani et al., 2023): xp, pwee
    pairs     x = x + attention(norm(x)) + attention_1(norm_1(x)); the    Three things everyone should know about Vision
              same with two MLPs                                          Transformers (Touvron et al., 2022): 18x2

Differential attention (dwee, dlittle, dpwee) is a mixer; norms after the residual branches (rpn) are
``order="res_post"``.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from layers.block import Branch
from layers.mixer import Place
from zoo.backbones.isotropic import Isotropic, IsotropicConfig
from zoo.naming import Each, Naming, Rearrange, Split, Unstack
from zoo.registry import Variant, freeze, one_of, register
from zoo.vision.releases import STATISTICS
from zoo.vision.vit_releases import RELEASES
from zoo.vision.vit_variants import VARIANTS as PUBLISHED


@dataclasses.dataclass(frozen=True)
class ViTConfig(IsotropicConfig):
    """Hyper-parameters of ViT.

    Attributes:
      arrangement: of attention and MLPs in a block, "serial", "joined" or "pairs".
    """

    arrangement: Literal["serial", "joined", "pairs"] = "serial"


class ViT(Isotropic):
    """ViT; names as in :class:`Isotropic`. The second of a pair is ``blocks.N.mixer_1`` or ``blocks.N.channel_1``."""

    def make_branches(self, place: Place, *, rngs: nnx.Rngs) -> dict[str, nnx.Module | Branch]:
        """The branches of a block.

        Raises:
          ValueError: an unknown arrangement, or one that does not support the order of norms.
        """
        c = self.config
        if c.arrangement not in ("serial", "joined", "pairs"):
            raise ValueError(f'arrangement is "serial", "joined" or "pairs", got {c.arrangement!r}')
        if c.arrangement != "serial" and c.order != "pre":
            raise ValueError(f'arrangement="{c.arrangement}" has its norms before the branches, not order={c.order!r}')
        mixer, channel = self.make_mixer(place, rngs=rngs), self.make_channel(place, rngs=rngs)
        if c.arrangement == "serial":
            return {"mixer": mixer, "channel": channel}
        if c.arrangement == "joined":
            return {"mixer": mixer, "channel": Branch(channel, order="parallel", norm=None)}
        mixer_1, channel_1 = self.make_mixer(place, rngs=rngs), self.make_channel(place, rngs=rngs)
        beside = functools.partial(Branch, order="parallel")
        return {"mixer": mixer, "mixer_1": beside(mixer_1), "channel": channel, "channel_1": beside(channel_1)}


VARIANTS: dict[str, dict[str, Any]] = PUBLISHED | {
    "vit_nano_patch4_32": {
        "image_size": 32,
        "patch_size": 4,
        "features": 64,
        "depth": 6,
        "num_heads": 4,
        "mlp_ratio": 2.0,
    },
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
_TABLES = ("position.table",)


def _blocks(names: str | tuple[str, ...]) -> str | tuple[str, ...]:
    return f"blocks.{{i}}.{names}" if isinstance(names, str) else tuple(f"blocks.{{i}}.{name}" for name in names)


def _attention(theirs: str, ours: str) -> list[tuple[Any, ...]]:
    return [
        (f"{theirs}.qkv", (f"{ours}.query", f"{ours}.key", f"{ours}.value"), Split()),
        (f"{theirs}.q_norm", f"{ours}.query_norm"),
        (f"{theirs}.k_norm", f"{ours}.key_norm"),
        (f"{theirs}.proj", f"{ours}.out"),
        *_differential(theirs, ours),
    ]


def _differential(theirs: str, ours: str) -> list[tuple[Any, ...]]:
    names = [f"lambda_{part}" for part in ("q1", "k1", "q2", "k2")]
    return [(f"{theirs}.sub_norm", f"{ours}.inner_norm"), *((f"{theirs}.{name}", f"{ours}.{name}") for name in names)]


def _serial_block(up: str = "fc1", down: str = "fc2") -> list[tuple[Any, ...]]:
    return [
        ("norm1", "mixer_norm"),
        *_attention("attn", "mixer"),
        ("ls1.gamma", "mixer_scale.scale"),
        ("norm2", "channel_norm"),
        (f"mlp.{up}", ("channel.gate", "channel.up"), Split()),
        (f"mlp.{down}", "channel.down"),
        ("ls2.gamma", "channel_scale.scale"),
    ]


# timm fuses the first linear layers of joined branches, and the last ones only with differential attention.
_FIRST = ("channel.up", "mixer.query", "mixer.key", "mixer.value")
_JOINED_BLOCK: list[tuple[Any, ...]] = [
    ("in_norm", "mixer_norm"),
    ("in_proj", _FIRST, Split()),
    ("q_norm", "mixer.query_norm"),
    ("k_norm", "mixer.key_norm"),
    ("attn_out_proj", "mixer.out"),
    ("mlp_out_proj", "channel.down"),
    ("ls.gamma", "mixer_scale.scale"),
]
_JOINED_BLOCKS: dict[str, list[tuple[Any, ...]]] = {
    "plain": _JOINED_BLOCK,
    "qkv without bias": [("mlp_bias", "channel.up.bias"), *_JOINED_BLOCK],
    "differential": [
        ("out_proj.bias", "channel.down.bias"),
        ("out_proj", ("mixer.out", "channel.down"), Split(1)),
        *((name, f"mixer.{name}") for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")),
        ("sub_norm", "mixer.inner_norm"),
        *_JOINED_BLOCK,
    ],
}

_PAIRS_BLOCK: list[tuple[Any, ...]] = [
    rule
    for number, suffix in enumerate(("", "_1"))
    for rule in (
        (f"attns.{number}.norm", f"mixer{suffix}_norm"),
        *_attention(f"attns.{number}.attn", f"mixer{suffix}"),
        (f"attns.{number}.ls.gamma", f"mixer{suffix}_scale.scale"),
        (f"ffns.{number}.norm", f"channel{suffix}_norm"),
        (f"ffns.{number}.mlp.fc1", f"channel{suffix}.up"),
        (f"ffns.{number}.mlp.fc2", f"channel{suffix}.down"),
        (f"ffns.{number}.ls.gamma", f"channel{suffix}_scale.scale"),
    )
]


def _timm(block: list[tuple[Any, ...]], registers: str = "reg_token") -> list[tuple[Any, ...]]:
    """timm's names; Facebook's differ little."""
    return [
        ("patch_embed.proj", "patch_embed"),
        ("cls_token", "class_token", _TOKENS),
        ("dist_token", "distillation_token", _TOKENS),
        (registers, "register_tokens", _TOKENS),
        ("mask_token", "mask_token"),
        ("pos_embed", *_POSITIONS),
        ("norm_pre", "pre_norm"),
        *[(f"blocks.{{i}}.{theirs}", _blocks(ours), *operations) for theirs, ours, *operations in block],
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
    """The names in files of the library transformers (its version 5 has others in memory)."""
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
        *[
            (f"{prefix}encoder.layer.{{i}}.{theirs}", _blocks(ours), *operations)
            for theirs, ours, *operations in inside
        ],
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
        (
            f"{prefix}embeddings.position_embedding.weight",
            ("prefix_position", "position.table"),
            Split(),
            Each((None, places)),
        ),
        (f"{prefix}pre_layrnorm", "pre_norm"),  # spelled so in the released files
        (f"{block}.layer_norm1", "blocks.{i}.mixer_norm"),
        *[(f"{block}.self_attn.{theirs}", f"blocks.{{i}}.mixer.{ours}") for theirs, ours in parts.items()],
        (f"{block}.layer_norm2", "blocks.{i}.channel_norm"),
        (f"{block}.mlp.fc1", "blocks.{i}.channel.up"),
        (f"{block}.mlp.fc2", "blocks.{i}.channel.down"),
        (f"{prefix}post_layernorm", "norm"),
        (f"{pool}.probe", "attention_pool.latent", _TOKENS),
        (
            f"{pool}.attention.in_proj_weight",
            tuple(f"{part}.kernel" for part in pooled),
            Split(),
            Rearrange("o i -> i o"),
        ),
        (f"{pool}.attention.in_proj_bias", tuple(f"{part}.bias" for part in pooled), Split()),
        (f"{pool}.attention.out_proj", "attention_pool.attention.out"),
        (f"{pool}.layernorm", "attention_pool.norm"),
        (f"{pool}.mlp.fc1", "attention_pool.mlp.up"),
        (f"{pool}.mlp.fc2", "attention_pool.mlp.down"),
        ("visual_projection", "head"),
    ]


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
        _jax(
            "encoderblock_{i}",
            "MultiHeadDotProductAttention_1",
            "LayerNorm_2",
            "MlpBlock_3",
            "Transformer/posembed_input/pos_embedding",
        ),
        "jax",
        _TABLES,
    ),
    "big_vision": Naming(_jax("encoderblock_{i}", *_BIG), "jax", _TABLES, _UNPLACED),
    "big_vision_scan": Naming(_jax("encoderblock", *_BIG), "jax", _TABLES, _UNPLACED),
}


def _library(
    prefix: str, block: list[tuple[Any, ...]], heads: tuple[str, ...] = ("classifier",), **whole: Any
) -> dict[str, Naming]:
    """A classifier of transformers and, under "bare", the model inside."""
    names = _transformers(prefix, block, heads)
    return {
        "transformers": Naming(names, tables=_TABLES, prefix=prefix, config=whole),
        "bare": Naming(_transformers("", block), tables=_TABLES, config=whole),
    }


RULES: dict[str, Naming] = {
    "timm": Naming(_timm(_serial_block()), tables=_TABLES),
    **_library("vit.", _VIT_BLOCK),
    **JAX_RULES,
}

# "transformers_single": DeiTForImageClassification has the second token, but not its head.
DISTILLED_RULES: dict[str, Naming] = {
    "timm": RULES["timm"],
    **_library("deit.", _VIT_BLOCK, ("cls_classifier", "distillation_classifier")),
    "transformers_single": Naming(
        _transformers("deit.", _VIT_BLOCK, ("classifier",)), tables=_TABLES, config={"distilled_head": False}
    ),
}

# The projection of CLIP has no bias; in a model without projection the option has no effect.
TOWER_RULES: dict[str, Naming] = {
    "timm": RULES["timm"],
    "transformers": Naming(
        _tower("vision_model."),
        tables=_TABLES,
        config={"head_bias": False},
        ignore=("text_{part}.**", "logit_{part}", "vision_model.embeddings.position_ids"),
    ),
    "bare": Naming(_tower(""), tables=_TABLES, config={"head_bias": False}),
    **{name: RULES[name] for name in ("big_vision", "big_vision_scan")},
}


def _dinov2_rules(mlp: str, registers: int) -> dict[str, Naming]:
    """DINOv2: the authors' files also hold a mask token and, with registers, a position of the class token, which timm
    adds to it.
    """
    gated = mlp == "swiglu"
    whole: dict[str, Any] = {"mask_token": True, "prefix_positions": "class"}
    names = _timm(_serial_block(*(("w12", "w3") if gated else ("fc1", "fc2"))), "register_tokens")
    block = _dinov2_block(*(("weights_in", "weights_out") if gated else ("fc1", "fc2")))
    prefix = "dinov2_with_registers." if registers else "dinov2."
    return {
        "timm": RULES["timm"],
        "dinov2": Naming(names, tables=_TABLES, config=whole),
        **_library(prefix, block, **whole),
    }


def _rules(name: str, config: ViTConfig) -> dict[str, Naming]:
    if config.arrangement == "joined":
        kind = "differential" if config.mixer else "plain" if config.qkv_bias else "qkv without bias"
        return {"timm": Naming(_timm(_JOINED_BLOCKS[kind]), tables=_TABLES)}
    if config.arrangement == "pairs":
        return {"timm": Naming(_timm(_PAIRS_BLOCK), tables=_TABLES)}
    if "dinov2" in name:
        return _dinov2_rules(config.mlp, config.registers)
    if config.distilled:
        return DISTILLED_RULES
    if "_clip_" in name or "_siglip_" in name:
        return TOWER_RULES
    plain = not config.registers and not config.pre_norm and config.layer_scale is None and config.qkv_bias
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
        config = ViTConfig(**{option: freeze(value) for option, value in overrides.items()})
        mean, std = STATISTICS["half" if config.num_classes else "imagenet"]
        preprocess: dict[str, Any] = {} if releases else {"mean": mean, "std": std, "crop_fraction": 0.9}
        papers = (156,) if "reg" in name else ()
        own = name == "vit_nano_patch4_32"
        kept: dict[str, Any] = {
            "parameters": PARAMETERS.get(name),
            "published": not own,
            "described": DESCRIBED,
            "paper": papers,
        }
        register(Variant(name, ViT, config, "vit", _rules(name, config), releases, preprocess, **kept))


_register()


def outlier_norms(model: Isotropic, images: jax.Array, *, cutoff: float = 150.0) -> tuple[jax.Array, jax.Array]:
    """Norms of the patch tokens after the last block, and the share of outliers among them.

    Vision Transformers Need Registers (Darcet et al., 2024), section 2.1: large models without registers use a few
    percent of their patch tokens to store global information; the norms of these tokens are far above the others'. With
    registers there are no such tokens.

    Args:
      model: any isotropic model.
      images: (batch, height, width, channels).
      cutoff: norm above which a token counts; 150 is the authors', for DINOv2's giant model.

    Returns:
      Norms (batch, rows, columns) in float32, and the share of all patch tokens above ``cutoff``, in [0, 1].
    """
    norms = jnp.linalg.norm(model.features(images, [-1])[0].astype(jnp.float32), axis=-1)
    return norms, jnp.mean(norms > cutoff)
