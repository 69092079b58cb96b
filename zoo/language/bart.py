"""BART: Denoising Sequence-to-Sequence Pre-training for Natural Language Generation, Translation, and Comprehension
(Lewis et al., ACL 2020, arXiv:1910.13461).

    each side  x = LayerNorm(word + position)
    encoder    N x [x = LayerNorm(x + Attention(x));  x = LayerNorm(x + MLP(x))]
    decoder    N x [x = LayerNorm(x + Attention(x));  x = LayerNorm(x + Cross(x, context));  x = LayerNorm(x + MLP(x))]

with GELU, biases everywhere, 1024 learned positions on each side, and one embedding shared by both sides and the
logits: the original transformer (arXiv:1706.03762) with normalized embeddings. A source is enclosed by the tokens 0 and
2, and the decoder starts from token 2. Released files have a bias of the logits, which is 0 and not trained. Sizes are
those of the released models; the size of ``bart_nano`` is our choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from layers.block import Order
from zoo.backbones.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from zoo.naming import Naming, Tie
from zoo.registry import Release, one_of, register_family


@dataclasses.dataclass(frozen=True)
class BARTConfig(EncoderDecoderConfig):
    """Hyper-parameters of BART: those of :class:`EncoderDecoderConfig` with its defaults."""

    vocab_size: int = 50265
    features: int = 768
    num_heads: int = 12
    norm_order: Order = "post"
    position: Literal["learned"] | None = "learned"
    position_offset: int = 2
    max_length: int = 1024
    embedding_norm: bool = True
    source_start: int | None = 0
    start_token: int = 2
    end_token: int | None = 2


VARIANTS: dict[str, dict[str, Any]] = {
    "bart_nano": {"vocab_size": 256, "features": 128, "depth": 2, "num_heads": 4, "max_length": 256},
    "bart_base": {},
    "bart_large": {"features": 1024, "depth": 12, "num_heads": 16},
}


def _names(prefix: str) -> Naming:
    """The parameter names of the transformers library; ``prefix`` precedes all names but the head's."""
    embeddings = [f"{prefix}{name}" for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens")]
    rules: list[tuple[Any, ...]] = [((*embeddings, "lm_head"), "embedding", Tie(count=4, written=False))]
    for side, branches in (
        ("encoder", {"self_attn": "mixer"}),
        ("decoder", {"self_attn": "mixer", "encoder_attn": "cross"}),
    ):
        layer, ours = f"{prefix}{side}.layers.{{i}}", f"{side}.blocks.{{i}}"
        for theirs, branch in branches.items():
            parts = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
            rules += [(f"{layer}.{theirs}.{name}", f"{ours}.{branch}.{part}") for name, part in parts.items()]
            rules.append((f"{layer}.{theirs}_layer_norm", f"{ours}.{branch}_norm"))
        rules += [
            (f"{layer}.fc1", f"{ours}.channel.up"),
            (f"{layer}.fc2", f"{ours}.channel.down"),
            (f"{layer}.final_layer_norm", f"{ours}.channel_norm"),
            (f"{prefix}{side}.embed_positions.weight", f"{side}.position"),
            (f"{prefix}{side}.layernorm_embedding", f"{side}.embedding_norm"),
        ]
    bias = {"final_logits_bias": lambda config, where: np.zeros((1, config.vocab_size), np.float32)} if prefix else {}
    return Naming(rules, prefix=prefix, buffers=bias)


RULES: dict[str, Naming] = {"transformers": _names("model."), "bare": _names("")}


def _heads(config: Mapping[str, Any]) -> Any:
    """The number of heads, which both sides share.

    Raises:
      ValueError: the sides have different numbers of heads, or the norms are placed differently.
    """
    one_of(config, "normalize_before", {False: False})
    one_of(config, "add_final_layer_norm", {False: False})
    heads = config.get("encoder_attention_heads")
    one_of(config, "decoder_attention_heads", {heads: heads})
    return heads


DESCRIBED: dict[str, Any] = {
    "num_heads": _heads,
    "mlp": lambda config: one_of(config, "activation_function", {"gelu": "gelu", "relu": "relu"}),
    "embedding_scale": lambda config: one_of(config, "scale_embedding", {False: 1.0, True: "sqrt"}),
    "source_start": lambda config: config.get("bos_token_id"),
    "start_token": lambda config: config.get("decoder_start_token_id"),
    "end_token": lambda config: config.get("eos_token_id"),
}

RELEASES = {f"bart_{size}": {"facebook": Release(f"hf://facebook/bart-{size}", 0)} for size in ("base", "large")}

# Counted in transformers' models; the shared embedding counts once.
PARAMETERS = {"bart_base": 139_420_416, "bart_large": 406_291_456}

register_family(
    "bart",
    EncoderDecoder,
    BARTConfig,
    VARIANTS,
    our_choice=("bart_nano",),
    parameters=PARAMETERS,
    rules=RULES,
    releases=RELEASES,
    described=DESCRIBED,
)
