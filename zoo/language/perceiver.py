"""Perceiver IO: A General Architecture for Structured Inputs & Outputs (Jaegle et al., ICLR 2022, arXiv:2107.14795).

    words + positions (n, 768)
      latents (256, 1280) = cross(latents, words)                     cost linear in n
      26 x [z = z + Attention(norm(z));  z = z + MLP(norm(z))]        cost independent of n
      hidden (n, 768) = cross(queries, latents)                       one query per position; no residual connection
      logits = hidden E^T + b                                         over the UTF-8 bytes and six special tokens

    cross(x, c): x = [x +] Attention(norm(x), norm(c));  x = x + MLP(norm(x))

Queries and keys have 256 features over all heads, values as many as the input of their projection, and MLPs one hidden
layer of their own width. For classification a single query of the latents' width reads the latents and gives one vector
per text. This is the model of text; that of images is :mod:`zoo.vision.perceiver_image`; the paper's models of optical
flow and multimodal data are not included.

``mixer`` replaces the self-attention of the latents, which have no order and no padding: there are 256 for every text.
Released: language-perceiver, 201 M parameters, trained on English bytes, 2048 at a time. The nano size is our choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
from flax import nnx

from layers.attention.multi_head import MultiHeadAttention
from layers.block import Order
from layers.broadcast import broadcast
from layers.extra_tokens import repeated
from layers.initializers import normal, zeros
from layers.linear import Embed, Linear
from layers.mixer import MixerSpec, Place
from layers.mlp import MLP
from layers.module import Module
from layers.norm import create_norm
from layers.tokens import Tokens
from zoo.backbones.encoder import ACTIVATIONS, Encoder, EncoderConfig
from zoo.naming import Naming
from zoo.registry import Release, one_of, register_family


@dataclasses.dataclass(frozen=True)
class PerceiverConfig(EncoderConfig):
    """Hyper-parameters of Perceiver IO; ``features``, ``depth`` and ``num_heads`` are those of the latents.

    Attributes:
      embedding_features: features of token embeddings, positions and the output queries of the tokens.
      latents: number of latents.
      key_features: features of queries and keys over all heads, except for the single classification query; None: as
        many as the values.
    """

    vocab_size: int = 262
    features: int = 1280
    depth: int = 26
    num_heads: int = 8
    mlp_ratio: float = 1.0
    embedding_features: int | None = 768
    embedding_norm: bool = False
    types: int = 0
    max_length: int = 2048
    norm_order: Order = "pre"
    norm_epsilon: float = 1e-5
    latents: int = 256
    key_features: int | None = 256


class CrossConfig(Protocol):
    """The fields of a configuration, of texts or of images, that the parts of a Perceiver read."""

    @property
    def features(self) -> int: ...
    @property
    def mlp(self) -> Any: ...
    @property
    def mlp_ratio(self) -> float: ...
    @property
    def norm_epsilon(self) -> float: ...
    @property
    def dropout(self) -> float: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def param_dtype(self) -> Any: ...


class Cross(Module):
    """A cross-attention block. Names: ``norm``, ``context_norm``, ``attention``, ``channel_norm``, ``channel``.

    Args:
      c: the configuration.
      features, context_features: features of x and of the context.
      key_features, value_features: features of queries and keys, and of values, over all heads; None is
        ``context_features``.
      num_heads: number of heads.
      residual: whether x is added to the attention's output.
    """

    def __init__(
        self,
        c: CrossConfig,
        features: int,
        context_features: int,
        *,
        num_heads: int,
        key_features: int | None = None,
        value_features: int | None = None,
        residual: bool = True,
        rngs: nnx.Rngs,
    ):
        common: dict[str, Any] = {"dtype": c.dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        self.norm = create_norm("layer", features, epsilon=c.norm_epsilon, **common)
        self.context_norm = create_norm("layer", context_features, epsilon=c.norm_epsilon, **common)
        self.attention = MultiHeadAttention(
            features, num_heads=num_heads, head_dim=(key_features or context_features) // num_heads,
            value_dim=(value_features or context_features) // num_heads, context_features=context_features,
            dropout=c.dropout, **common,
        )  # fmt: skip
        self.channel_norm = create_norm("layer", features, epsilon=c.norm_epsilon, **common)
        hidden, activation = int(c.mlp_ratio * features), ACTIVATIONS[c.mlp]
        self.channel = MLP(features, hidden, activation=activation, dropout=c.dropout, **common)
        self.residual = residual

    def __call__(self, x: jax.Array, context: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Maps (batch, count, features), given a context (batch, length, context_features) and its mask."""
        found = self.attention(self.norm(x), Tokens(context=self.context_norm(context), context_mask=mask))
        x = x + found if self.residual else found
        return x + self.channel(self.channel_norm(x))


class Asked(Module):
    """Learned queries that attend to the latents.

    Names: ``queries`` (count, features) and ``cross`` (:class:`Cross`).
    """

    undecayed = ("queries",)

    def __init__(self, c: CrossConfig, count: int, features: int, *, rngs: nnx.Rngs, **options: Any):
        self.queries = nnx.Param(normal(0.02)(rngs.params(), (count, features), c.param_dtype))
        self.cross = Cross(c, features, c.features, rngs=rngs, **options)

    def __call__(self, latents: jax.Array, count: int = 1) -> jax.Array:
        """Maps latents (batch, latents, features) to the outputs of the first ``count`` queries, (batch, count,
        features).
        """
        return self.cross(repeated(self.queries[:count], latents.shape[0], latents.dtype), latents)


class TokenHead(Asked):
    """One query per position, and the output head: ``bias`` of the logits over the vocabulary, or ``out`` (linear) for
    continuous values.
    """

    def __init__(self, c: PerceiverConfig, width: int, *, rngs: nnx.Rngs):
        keys = {"num_heads": c.num_heads, "key_features": c.key_features, "value_features": width}
        super().__init__(c, c.max_length, width, residual=False, rngs=rngs, **keys)
        tokens, common = c.inputs == "tokens", {"dtype": c.dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        self.bias = nnx.Param(zeros(rngs.params(), (c.vocab_size,), c.param_dtype)) if tokens else None
        self.out = None if tokens else Linear(width, c.in_features, **common)

    def logits(self, hidden: jax.Array, embedding: Embed | Linear) -> jax.Array:
        """Maps (..., width) to logits (..., vocab_size), or to values (..., in_features)."""
        if self.bias is None or not isinstance(embedding, Embed):
            assert self.out is not None
            return self.out(hidden)
        logits = embedding.attend(hidden)
        return logits + broadcast(self.bias[...], logits.shape, logits.dtype)


class Perceiver(Encoder):
    """Perceiver IO on text.

    Names: ``embedding``, ``position``, ``latents``, ``encoder`` (:class:`Cross`), ``blocks.N`` and, depending on the
    configuration, ``masked_lm`` (:class:`TokenHead`), ``pooler`` (:class:`Asked`) and ``head``.
    """

    stem = (*Encoder.stem, "latents", "encoder")  # type: ignore[assignment]
    undecayed = (*Encoder.undecayed, "latents")
    config: PerceiverConfig

    def __init__(self, config: PerceiverConfig, *, rngs: nnx.Rngs):
        """As :class:`Encoder`.

        Raises:
          ValueError: ``causal`` is set, but the latents attend to all tokens.
        """
        if config.causal:
            raise ValueError("the latents of a Perceiver see all tokens: it can't be causal")
        super().__init__(config, rngs=rngs)
        c, width = self.config, self._outer
        self.projection = self.norm = None
        self.latents = nnx.Param(normal(0.02)(rngs.params(), (c.latents, c.features), c.param_dtype))
        self.encoder = Cross(
            c, c.features, width, num_heads=c.num_heads, key_features=c.key_features, value_features=c.features,
            rngs=rngs,
        )  # fmt: skip

    @property
    def _outer(self) -> int:
        """Features of token embeddings and of the tokens' output queries."""
        return self.config.embedding_features or self.config.features

    def own_mixer(self, place: Place) -> MixerSpec:
        c, heads = self.config, place.num_heads or 1
        return {
            "name": "attention", "head_dim": (c.key_features or c.features) // heads, "value_dim": c.features // heads
        }  # fmt: skip

    def _token_head(self, rngs: nnx.Rngs) -> nnx.Module:
        return TokenHead(self.config, self._outer, rngs=rngs)

    def _pooler(self, rngs: nnx.Rngs) -> nnx.Module:
        return Asked(self.config, 1, self.config.features, num_heads=1, rngs=rngs)

    def enter(self, x: jax.Array, known: Tokens) -> tuple[jax.Array, Tokens]:
        """The latents after cross-attention to the tokens: (batch, latents, features).

        Raises:
          ValueError: ``segment_ids`` or ``roles`` are given.
        """
        if known.segment_ids is not None or known.roles is not None:
            raise ValueError(
                "the latents of a Perceiver are those of a whole row, and its tokens have no roles: give each document "
                "a row of its own, without roles"
            )
        latents = repeated(self.latents[...], x.shape[0], x.dtype)
        return self.encoder(latents, x, known.mask), Tokens()

    def read(
        self,
        tokens: jax.Array,
        mask: jax.Array | None = None,
        types: jax.Array | None = None,
        *,
        roles: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
    ) -> jax.Array:
        """The latents after all blocks: (batch, latents, features); arguments as the model's."""
        return super().hidden(tokens, mask, types, roles=roles, segment_ids=segment_ids)

    def hidden(
        self,
        tokens: jax.Array,
        mask: jax.Array | None = None,
        types: jax.Array | None = None,
        *,
        roles: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
    ) -> jax.Array:
        """The output of each position's query: (batch, length, embedding_features).

        Raises:
          ValueError: the model was made without ``masked_lm``, which has these queries.
        """
        if self.masked_lm is None:
            raise ValueError("the model has no query for each token: make it with masked_lm=True, or take model.read")
        latents = self.read(tokens, mask, types, roles=roles, segment_ids=segment_ids)
        return self.masked_lm(latents, tokens.shape[1])

    def logits(self, hidden: jax.Array) -> jax.Array:
        if self.masked_lm is None:
            return super().logits(hidden)
        return self.masked_lm.logits(hidden, self.embedding)

    def pooled(  # type: ignore[override]
        self,
        tokens: jax.Array,
        mask: jax.Array | None = None,
        types: jax.Array | None = None,
        *,
        roles: jax.Array | None = None,
    ) -> jax.Array:
        """One vector per sequence: the classification query's output or a pool of the latents, (batch, features)."""
        return self.pool(self.read(tokens, mask, types, roles=roles))

    def first(self, hidden: jax.Array) -> jax.Array:
        """The output of the classification query, or the first latent where there is none: (batch, features)."""
        return hidden[:, 0] if self.pooler is None else self.pooler(hidden)[:, 0]


VARIANTS: dict[str, dict[str, Any]] = {
    "perceiver_nano": {
        "features": 128, "depth": 4, "num_heads": 4, "embedding_features": 64, "latents": 32, "key_features": 64,
        "max_length": 512,
    },
    "perceiver_language": {},
}  # fmt: skip


def cross_names(theirs: str, ours: str) -> list[tuple[str, str]]:
    """The naming rules of a :class:`Cross`."""
    norm = (f"{theirs}.attention.self.layernorm2", f"{ours}.context_norm")
    return [norm, *block_names(theirs, ours, "attention", "norm")]


def block_names(theirs: str, ours: str, mixer: str, norm: str) -> list[tuple[str, str]]:
    """The naming rules of a block of the latents, with our names ``mixer`` and ``norm`` of its attention and norm."""
    return [
        (f"{theirs}.attention.self.layernorm1", f"{ours}.{norm}"),
        *[(f"{theirs}.attention.self.{part}", f"{ours}.{mixer}.{part}") for part in ("query", "key", "value")],
        (f"{theirs}.attention.output.dense", f"{ours}.{mixer}.out"),
        (f"{theirs}.layernorm", f"{ours}.channel_norm"),
        (f"{theirs}.mlp.dense1", f"{ours}.channel.up"),
        (f"{theirs}.mlp.dense2", f"{ours}.channel.down"),
    ]


_MODEL, _OF_CLASSES = "perceiver", "perceiver.decoder.decoder"
RULES: dict[str, Naming] = {
    "transformers": Naming(
        [
            (f"{_MODEL}.input_preprocessor.embeddings", "embedding"),
            (f"{_MODEL}.input_preprocessor.position_embeddings.weight", "position"),
            (f"{_MODEL}.embeddings.latents", "latents"),
            *cross_names(f"{_MODEL}.encoder.cross_attention", "encoder"),
            *block_names(f"{_MODEL}.encoder.self_attends.{{i}}", "blocks.{i}", "mixer", "mixer_norm"),
            (f"{_MODEL}.decoder.output_position_encodings.position_embeddings", "masked_lm.queries"),
            *cross_names(f"{_MODEL}.decoder.decoding_cross_attention", "masked_lm.cross"),
            ("embedding_decoder.bias", "masked_lm.bias"),
            (f"{_OF_CLASSES}.output_position_encodings.position_embeddings", "pooler.queries"),
            *cross_names(f"{_OF_CLASSES}.decoding_cross_attention", "pooler.cross"),
            (f"{_OF_CLASSES}.final_layer", "head"),
        ]
    )
}


def _epsilon(config: Mapping[str, Any]) -> Any:
    """The norms' epsilon, which is the default; refuses options that this family does not have."""
    one_of(config, "hidden_act", {"gelu": "gelu"})
    one_of(config, "num_blocks", {1: 1})
    one_of(config, "use_query_residual", {True: "yes"})
    return None


DESCRIBED: dict[str, Any] = {
    "norm_epsilon": _epsilon,
    "num_heads": lambda config: config.get("num_self_attention_heads"),
}

RELEASES: dict[str, dict[str, Release]] = {
    "perceiver_language": {"deepmind": Release("hf://deepmind/language-perceiver", 0)},
}

# Counted in transformers' PerceiverForMaskedLM with 256 features of queries and keys and 1280 of values, as released.
PARAMETERS = {"perceiver_language": 201_108_230}

register_family(
    "perceiver",
    Perceiver,
    PerceiverConfig,
    VARIANTS,
    our_choice=("perceiver_nano",),
    parameters=PARAMETERS,
    rules=RULES,
    releases=RELEASES,
    described=DESCRIBED,
)
