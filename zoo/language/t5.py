"""T5: Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer (Raffel et al., 2020,
arXiv:1910.10683).

    encoder  N x [x = x + Attention(RMSNorm(x));  x = x + MLP(RMSNorm(x))]
    decoder  N x [x = x + Attention(RMSNorm(x));  x = x + Cross(RMSNorm(x), context);  x = x + MLP(RMSNorm(x))]

without biases, and with unscaled attention scores: the initial weights of the query projections are smaller instead. A
learned bias for each head and bucket of relative distances is added to the scores of self-attention (section 2.1), from
one table for all blocks of a side. The first version has an MLP with ReLU and logits E x / sqrt(features) from the
embedding E; version 1.1 (Shazeer, 2020, arXiv:2002.05202) has GEGLU and an untied head. mT5 (Xue et al., 2021,
arXiv:2010.11934) is version 1.1 with a larger vocabulary, ByT5 (Xue et al., 2022, arXiv:2105.13626) version 1.1 on
bytes, where byte b is token b + 3, with an encoder three times as deep as the decoder; Flan-T5 (Chung et al., 2022,
arXiv:2210.11416) is version 1.1 with other weights. The size of ``t5_nano`` is our choice.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from layers.attention.relative import BucketedDistances
from layers.attention.shared_distances import SharedDistances
from layers.initializers import Initializer, variance_scaling
from layers.mixer import MixerSpec, Place
from zoo.backbones.causal import Mlp
from zoo.backbones.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from zoo.backbones.model import mixers
from zoo.naming import Naming, Tie
from zoo.registry import Release, one_of, register_family


@dataclasses.dataclass(frozen=True)
class T5Config(EncoderDecoderConfig):
    """Hyper-parameters of T5: those of :class:`EncoderDecoderConfig` with its defaults.

    Attributes:
      head_dim: features of a head; None is features / num_heads.
      buckets, max_distance: as in :class:`layers.attention.relative.BucketedDistances`.
    """

    vocab_size: int = 32128
    head_dim: int | None = 64
    buckets: int = 32
    max_distance: int = 128
    mlp: Mlp | None = "relu"
    mlp_bias: bool = False
    norm: str = "rms"
    norm_epsilon: float = 1e-6
    embedding_std: float = 1.0


class T5(EncoderDecoder):
    """T5; names as in :class:`EncoderDecoder`, and ``encoder.relative`` and ``decoder.relative``, the tables of
    relative position biases, where blocks have T5's own mixer.
    """

    config: T5Config
    kernel_init: ClassVar[Initializer] = variance_scaling(1.0, "fan_in", "normal")

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        c, head_dim = config, self._heads["head_dim"]
        made: Any = {"num_heads": c.num_heads, "head_dim": head_dim, "param_dtype": c.param_dtype, "rngs": rngs}
        for side, causal in ((self.encoder, False), (self.decoder, True)):
            if any(isinstance(mixer, SharedDistances) for mixer in mixers(side.blocks)):
                side.relative = BucketedDistances(buckets=c.buckets, max_distance=c.max_distance, causal=causal, **made)

    def handed_on(self, stage: int) -> Any:
        relative = (self.encoder, self.decoder)[stage].relative
        return None if relative is None else relative.changes(*[jnp.zeros((1, 1), jnp.int32)] * 2)["relative_bias"]

    def own_mixer(self, place: Place) -> MixerSpec:
        return functools.partial(SharedDistances, reach=self.config.max_distance, **self._heads)

    def own_cross(self, place: Place) -> MixerSpec:
        return {"name": "attention", "context_features": self.outer_features, **self._heads}

    @property
    def _heads(self) -> dict[str, Any]:
        c = self.config
        head_dim = c.head_dim or c.features // c.num_heads
        narrow = variance_scaling(1 / head_dim, "fan_in", "normal")
        inits = {"kernel_init": self.kernel_init, "query_init": narrow}
        return {"head_dim": head_dim, "use_bias": False, "scale": 1.0, **inits}

    def logits(self, hidden: jax.Array) -> jax.Array:
        return super().logits(hidden * self.outer_features**-0.5 if self.head is None else hidden)


_V11: dict[str, Any] = {"mlp": "geglu_tanh", "tied": False}
_LARGE: dict[str, Any] = {"features": 1024, "depth": 24, "num_heads": 16}
_SIZES: dict[str, dict[str, Any]] = {
    "small": {"features": 512, "hidden": 1024, "depth": 8, "num_heads": 6},
    "base": {"features": 768, "hidden": 2048, "depth": 12, "num_heads": 12},
    "large": {**_LARGE, "hidden": 2816},
    "xl": {**_LARGE, "features": 2048, "hidden": 5120, "num_heads": 32},
    "xxl": {**_LARGE, "features": 4096, "hidden": 10240, "num_heads": 64},
}
_BYTES: dict[str, dict[str, Any]] = {
    "small": {"features": 1472, "hidden": 3584, "depth": 4, "encoder_depth": 12, "num_heads": 6},
    "base": {"features": 1536, "hidden": 3968, "depth": 6, "encoder_depth": 18, "num_heads": 12},
    "large": {"features": 1536, "hidden": 3840, "depth": 12, "encoder_depth": 36, "num_heads": 16},
    "xl": {"features": 2560, "hidden": 6720, "depth": 12, "encoder_depth": 36, "num_heads": 32},
    "xxl": {"features": 4672, "hidden": 12352, "depth": 12, "encoder_depth": 36, "num_heads": 64},
}

VARIANTS: dict[str, dict[str, Any]] = {
    "t5_nano": {"vocab_size": 256, "features": 128, "depth": 2, "num_heads": 4, "head_dim": None, "max_length": 256},
    "t5_small": {},
    "t5_base": {"features": 768, "depth": 12, "num_heads": 12},
    "t5_large": {**_LARGE},
    "t5_3b": {**_LARGE, "num_heads": 32, "head_dim": 128, "hidden": 16384},
    "t5_11b": {**_LARGE, "num_heads": 128, "head_dim": 128, "hidden": 65536},
    **{f"t5_v1.1_{size}": {**_V11, **sizes} for size, sizes in _SIZES.items()},
    **{f"mt5_{size}": {**_V11, **sizes, "vocab_size": 250112, "max_length": 1024} for size, sizes in _SIZES.items()},
    **{f"byt5_{size}": {**_V11, **sizes, "vocab_size": 384, "max_length": 1024} for size, sizes in _BYTES.items()},
}


def _names(gated: bool) -> Naming:
    """The parameter names of the transformers library, for models with gated or plain MLPs."""
    heads = {"q": "query", "k": "key", "v": "value", "o": "out"}
    mlp = {"wi_0": "gate", "wi_1": "up", "wo": "down"} if gated else {"wi": "up", "wo": "down"}
    own, cross = ("SelfAttention", "mixer", heads), ("EncDecAttention", "cross", heads)
    dense = ("DenseReluDense", "channel", mlp)
    rules: list[tuple[Any, ...]] = [
        (
            ("shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"),
            "embedding",
            Tie(count=4, written=False),
        ),
        ("lm_head", "head"),
    ]
    for side, branches in (("encoder", (own, dense)), ("decoder", (own, cross, dense))):
        for number, (module, branch, parts) in enumerate(branches):
            theirs, ours = f"{side}.block.{{i}}.layer.{number}", f"{side}.blocks.{{i}}.{branch}"
            rules += [(f"{theirs}.{module}.{name}", f"{ours}.{part}") for name, part in parts.items()]
            rules.append((f"{theirs}.layer_norm", f"{ours}_norm"))
        table = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        rules += [(table, f"{side}.relative.table"), (f"{side}.final_layer_norm", f"{side}.norm")]
    # A table that the first files hold but no model uses.
    return Naming(rules, ignore=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",))


RULES: dict[str, Naming] = {"transformers": _names(gated=False)}
GATED_RULES: dict[str, Naming] = {"transformers": _names(gated=True)}


def _tied(config: Mapping[str, Any]) -> Any:
    """Whether the head is tied to the embedding. Transformers 5 writes ``tie_word_embeddings`` as true for all models;
    for a T5 ``scale_decoder_outputs`` decides there, and no mT5 is tied.
    """
    if one_of(config, "model_type", {"t5": False, "mt5": True}):
        return False
    scaled = config.get("scale_decoder_outputs")
    return config.get("tie_word_embeddings") if scaled is None else scaled


_ACTIVATIONS = {"relu": "relu", "gated-gelu": "geglu_tanh"}

DESCRIBED: dict[str, Any] = {
    "norm_epsilon": lambda config: config.get("layer_norm_epsilon"),
    "num_heads": lambda config: config.get("num_heads"),
    "head_dim": lambda config: config.get("d_kv"),
    "max_distance": lambda config: config.get("relative_attention_max_distance"),
    "mlp": lambda config: one_of(config, "feed_forward_proj", _ACTIVATIONS),
    "tied": _tied,
    "start_token": lambda config: config.get("decoder_start_token_id"),
    "end_token": lambda config: config.get("eos_token_id"),
}

RELEASES: dict[str, dict[str, Release]] = {
    **{
        f"t5_{size}": {"google": Release(f"hf://google-t5/t5-{size}", 0)}
        for size in ("small", "base", "large", "3b", "11b")
    },
    **{
        f"t5_v1.1_{size}": {
            "google": Release(f"hf://google/t5-v1_1-{size}", 0),
            "flan": Release(f"hf://google/flan-t5-{size}", 0),
        }
        for size in _SIZES
    },
    **{f"mt5_{size}": {"google": Release(f"hf://google/mt5-{size}", 0)} for size in _SIZES},
    **{f"byt5_{size}": {"google": Release(f"hf://google/byt5-{size}", 0)} for size in _BYTES},
}

# Counted in transformers' models of the released sizes; a tied embedding counts once.
PARAMETERS: dict[str, int] = {
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "t5_large": 737_668_096,
    "t5_3b": 2_851_598_336,
    "t5_11b": 11_307_321_344,
    "t5_v1.1_small": 76_961_152,
    "t5_v1.1_base": 247_577_856,
    "t5_v1.1_large": 783_150_080,
    "t5_v1.1_xl": 2_849_757_184,
    "t5_v1.1_xxl": 11_135_332_352,
    "mt5_small": 300_176_768,
    "mt5_base": 582_401_280,
    "mt5_large": 1_229_581_312,
    "mt5_xl": 3_742_619_648,
    "mt5_xxl": 12_921_057_280,
    "byt5_small": 299_637_760,
    "byt5_base": 581_653_248,
    "byt5_large": 1_228_183_552,
    "byt5_xl": 3_737_801_728,
    "byt5_xxl": 12_906_899_328,
}

_COMMON: dict[str, Any] = {"releases": RELEASES, "parameters": PARAMETERS, "described": DESCRIBED}
_PLAIN = {name: sizes for name, sizes in VARIANTS.items() if "mlp" not in sizes}
register_family("t5", T5, T5Config, _PLAIN, our_choice=("t5_nano",), rules=RULES, **_COMMON)
_GATED = {name: sizes for name, sizes in VARIANTS.items() if "mlp" in sizes}
register_family("t5", T5, T5Config, _GATED, rules=GATED_RULES, **_COMMON)
