"""The bidirectional backbone of sequences: maps tokens to a vector for each of them, or to one for all.

    tokens -> words + positions + types -> norm (-> projection) -> blocks -> logits over the vocabulary
                                                                         -> pool -> head
    values -> linear map ...                                             -> values

BERT and similar models are this class with other hyper-parameters. A pair of sequences is read as one, with types 0 and
1, or separately, with one head on both vectors (``head="dual"``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from layers.block import Order
from layers.broadcast import broadcast, lookup
from layers.combinators import bidirectional, on_sequence
from layers.drop import Dropout
from layers.initializers import normal, truncated_normal, zeros
from layers.linear import Embed, Linear
from layers.mixer import Mixer, MixerSpec, Place, create_mixer, finite_padding
from layers.mlp import MLP, gelu, gelu_tanh
from layers.module import Module
from layers.norm import create_norm, unit
from layers.position import sinusoids
from layers.tokens import Tokens
from zoo.backbones.classifier import Classifier, MLPHead
from zoo.backbones.model import check_length, drawn_places, last_of_quarters, mixers
from zoo.backbones.pooling import Pool, create_pool
from zoo.registry import ModelConfig


@dataclasses.dataclass(frozen=True)
class EncoderConfig(ModelConfig):
    """Hyper-parameters of a bidirectional model of sequences.

    Attributes:
      vocab_size: number of tokens; the embedding has a row for each.
      inputs: "tokens", or "linear": each position holds ``in_features`` numbers, which a linear map takes in place of
        an embedding.
      in_features: numbers at each position of "linear" inputs.
      num_classes: classes of the head; 0 for none. With a head, ``output`` is "pooled".
      features, depth, num_heads, mlp_ratio: width, number of blocks, attention heads, hidden width of the MLP /
        features.
      mlp: activation of the MLP and of the head over the vocabulary.
      embedding_features: width of the embeddings, which a linear layer maps to ``features``; None: they have that
        width.
      embedding_std: standard deviation of the initial embedding.
      embedding_norm: whether the sum of embeddings is normalized.
      position: "learned" adds a table of ``max_length`` rows, "sinusoid" the fixed one of Vaswani et al. (2017); None
        leaves positions to the mixers.
      max_length: positions that the table has rows for; longer sequences are refused.
      position_offset: rows of the table before that of the first position (RoBERTa's has two for padding).
      randomized: positions are sampled out of ``max_length``, for sequences of at most this many tokens, and are the
        same for the table and all mixers (:class:`layers.RandomizedPlaces`); None: they are 0, 1, 2, ...
      types: number of token types (segments of BERT); 0 for none.
      norm_order, norm_epsilon: of the blocks.
      causal: whether tokens see only earlier ones and themselves.
      output: what ``model(tokens)`` gives: "vocabulary", logits for each token ("linear" inputs: their values), or
        "pooled", a vector (with a head, logits of its classes).
      pool: "token" (the first), "average", "sum" or "max" of the real tokens, "last" (the last real one), or a function
        as :data:`zoo.backbones.pooling.Pool`.
      normalize: whether pooled vectors are scaled to Euclidean length 1.
      pooler: a linear layer and tanh after pooling by token; None: if the output is "pooled" and ``pool`` is "token".
      head: "linear", "mlp" (one hidden layer and ReLU), or "dual": of two sequences, two hidden layers, the second half
        as wide.
      head_hidden: hidden features of the head; None is the hidden width of the MLP.
      interaction: the input of a "dual" head for vectors a and b: "nli", [a, b, a b, a - b], or "concatenation", [a,
        b].
      masked_lm: the head over the vocabulary; None: if ``output`` is "vocabulary".
      next_sentence: a head that predicts whether the second segment follows the first.
    """

    vocab_size: int = 30522
    inputs: Literal["tokens", "linear"] = "tokens"
    in_features: int = 1
    num_classes: int = 0
    features: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    mlp: Literal["gelu", "gelu_tanh"] = "gelu"
    embedding_features: int | None = None
    embedding_std: float = 0.02
    embedding_norm: bool = True
    position: Literal["learned", "sinusoid"] | None = "learned"
    max_length: int = 512
    position_offset: int = 0
    randomized: int | None = None
    types: int = 2
    norm_order: Order = "post"
    norm_epsilon: float = 1e-12
    causal: bool = False
    output: Literal["vocabulary", "pooled"] = "vocabulary"
    pool: str | Pool = "token"
    normalize: bool = False
    pooler: bool | None = None
    head: Literal["linear", "mlp", "dual"] = "linear"
    head_hidden: int | None = None
    interaction: Literal["nli", "concatenation"] = "nli"
    masked_lm: bool | None = None
    next_sentence: bool = False


ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {"gelu": gelu, "gelu_tanh": gelu_tanh}
CHOICES: Mapping[str, tuple[Any, ...]] = {
    "output": ("vocabulary", "pooled"),
    "inputs": ("tokens", "linear"),
    "position": ("learned", "sinusoid", None),
    "head": ("linear", "mlp", "dual"),
    "interaction": ("nli", "concatenation"),
}
INTERACTIONS: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "nli": lambda a, b: jnp.concatenate([a, b, a * b, a - b], -1),
    "concatenation": lambda a, b: jnp.concatenate([a, b], -1),
}
"""The input of a head on two vectors."""


class MaskedHead(Module):
    """``norm(gelu(W x)) E^T + b`` with E the embedding: the head of BERT's task 1 (Devlin et al., 2019,
    arXiv:1810.04805), as in the authors' code.
    """

    def __init__(self, c: EncoderConfig, *, rngs: nnx.Rngs):
        common = {"dtype": c.dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        width = c.embedding_features or c.features
        self.transform = Linear(c.features, width, kernel_init=truncated_normal(0.02), **common)
        self.norm = create_norm("layer", width, epsilon=c.norm_epsilon, **common)
        self.activation = ACTIVATIONS[c.mlp]
        self.bias = nnx.Param(zeros(rngs.params(), (c.vocab_size,), c.param_dtype))

    def __call__(self, hidden: jax.Array, embedding: Embed) -> jax.Array:
        """Maps (..., features) to logits (..., vocab_size)."""
        logits = embedding.attend(self.norm(self.activation(self.transform(hidden))))
        return logits + broadcast(self.bias[...], logits.shape, logits.dtype)


class Encoder(Classifier):
    """A bidirectional model of sequences.

    Masks are bool (batch, length), True for real tokens; padding trails. Names: ``embedding``, ``position``, ``types``,
    ``embedding_norm``, ``blocks.N``, ``norm`` (pre-norm only), and as the configuration says ``projection``,
    ``pooler``, ``head``, ``masked_lm`` (of "linear" inputs a linear map to their values), ``next_sentence``.
    """

    stem = ("embedding", "position", "types", "embedding_norm", "projection")
    undecayed: ClassVar[tuple[str, ...]] = ("embedding", "position", "types")
    extras: ClassVar[tuple[str, ...]] = ("pooler", "masked_lm", "next_sentence")
    before_head: ClassVar[tuple[str, ...]] = ("pooler",)
    without: ClassVar[Mapping[str, str]] = {
        **Classifier.without,
        "masked_lm": 'no head over the vocabulary: make the model with output="pooled"',
        "pooler": "no pooler: make the model with pooler=False",
    }

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        """Builds the model.

        Raises:
          ValueError: an unknown choice, or a mixer that takes grids only.
        """
        output = "pooled" if config.num_classes else config.output
        for field, choices in CHOICES.items():
            if (given := getattr(config, field)) not in choices:
                raise ValueError(f"{field} is one of {', '.join(map(repr, choices))}; got {given!r}")
        create_pool(config.pool)
        pooler = output == "pooled" and config.pool == "token" if config.pooler is None else config.pooler
        masked_lm = output == "vocabulary" if config.masked_lm is None else config.masked_lm
        c = self.config = dataclasses.replace(config, output=output, pooler=pooler, masked_lm=masked_lm)
        common = {"dtype": c.dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        width = c.embedding_features or c.features
        self.embedding = (
            Embed(c.vocab_size, width, embedding_init=normal(c.embedding_std), **common)
            if c.inputs == "tokens"
            else Linear(c.in_features, width, **common)
        )
        self.position = (
            nnx.Param(normal(0.02)(rngs.params(), (c.position_offset + c.max_length, width), c.param_dtype))
            if c.position == "learned"
            else None
        )
        self.places = drawn_places(c, rngs, longest=c.randomized if c.causal else None)
        self.types = Embed(c.types, width, embedding_init=normal(0.02), **common) if c.types else None
        self.embedding_norm = (
            create_norm("layer", width, epsilon=c.norm_epsilon, **common) if c.embedding_norm else None
        )
        projected = c.embedding_features is not None
        self.projection = Linear(width, c.features, kernel_init=truncated_normal(0.02), **common) if projected else None
        self.dropout = Dropout(c.dropout, rngs=rngs) if c.dropout else None
        self.blocks = self.make_stack(rngs=rngs)
        self.norm = (
            create_norm("layer", c.features, epsilon=c.norm_epsilon, **common) if c.norm_order == "pre" else None
        )
        self.pooler: Any = self._pooler(rngs) if c.pooler else None
        self.masked_lm: Any = self._token_head(rngs) if c.masked_lm else None
        self.next_sentence = (
            Linear(c.features, 2, kernel_init=truncated_normal(0.02), **common) if c.next_sentence else None
        )
        self.num_features = c.features
        self.head = self.make_head(rngs=rngs)

    def _pooler(self, rngs: nnx.Rngs) -> nnx.Module:
        """The linear layer after pooling by token."""
        c, init = self.config, truncated_normal(0.02)
        return Linear(c.features, c.features, kernel_init=init, dtype=c.dtype, param_dtype=c.param_dtype, rngs=rngs)

    def _token_head(self, rngs: nnx.Rngs) -> nnx.Module:
        """The head that gives each token logits over the vocabulary, or its values."""
        c = self.config
        if c.inputs == "tokens":
            return MaskedHead(c, rngs=rngs)
        return Linear(c.features, c.in_features, dtype=c.dtype, param_dtype=c.param_dtype, rngs=rngs)

    def make_head(self, *, rngs: nnx.Rngs) -> Any:
        c = self.config
        if c.head == "linear" or not c.num_classes:
            return super().make_head(rngs=rngs)
        hidden = int(c.features * c.mlp_ratio) if c.head_hidden is None else c.head_hidden
        seen = c.features
        if c.head == "dual":
            seen *= 4 if c.interaction == "nli" else 2
        return MLPHead(
            seen, c.num_classes, hidden, hidden // 2 if c.head == "dual" else None, dtype=c.dtype,
            param_dtype=c.param_dtype, rngs=rngs,
        )  # fmt: skip

    def own_mixer(self, place: Place) -> MixerSpec:
        return "attention"

    def make_mixer(self, place: Place, *, rngs: nnx.Rngs) -> Mixer:
        spec, features = self.mixer_spec(place), self.config.features
        if self.config.causal:
            return create_mixer(spec, features, causal=True, place=place, rngs=rngs)
        return on_sequence(bidirectional(spec, features, place=place, rngs=rngs))

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module:
        c = self.config
        return MLP(
            c.features,
            int(c.features * c.mlp_ratio),
            activation=ACTIVATIONS[c.mlp],
            dropout=c.dropout,
            **place.dtypes,
            rngs=rngs,
        )

    def block_options(self, place: Place) -> dict[str, Any]:
        return {"norm_epsilon": self.config.norm_epsilon, "order": self.config.norm_order}

    def __call__(
        self,
        tokens: jax.Array,
        mask: jax.Array | None = None,
        types: jax.Array | None = None,
        *,
        roles: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        tokens2: jax.Array | None = None,
        mask2: jax.Array | None = None,
    ) -> jax.Array:
        """Reads whole sequences.

        Args:
          tokens: (batch, length) int32, or words already looked up, (batch, length, features of the embedding); with
            "linear" inputs (batch, length, in_features).
          mask: True for real tokens.
          types: (batch, length) int32, the type of each token; default: 0.
          roles: (batch, length) int32, for mixers that use them: 1 for global tokens of Longformer.
          segment_ids: (batch, length) int32, the document of each token of a row that holds several.
          tokens2, mask2: the second sequence of a pair, for a model with ``head="dual"``; it may have another length.

        Returns:
          Logits (batch, length, vocab_size), or values (batch, length, in_features); with ``output="pooled"`` vectors
          (batch, features), or logits (batch, classes).

        Raises:
          ValueError: a sequence longer than the position table, several documents in a row although the output is one
            vector for each row, or a second sequence that is missing or that the head does not take.
        """
        dual = self.head is not None and self.config.head == "dual"
        if dual != (tokens2 is not None):
            raise ValueError(
                'a model with head="dual" compares two sequences: give tokens2= (and mask2=)'
                if dual
                else 'tokens2= is for a model with num_classes and head="dual"; others read a pair as one sequence'
            )
        if self.config.output == "vocabulary":
            return self.logits(self.hidden(tokens, mask, types, roles=roles, segment_ids=segment_ids))
        if segment_ids is not None:
            raise ValueError(
                "the output is one vector for each row: give each document a row of its own, or take model.hidden(...)"
            )
        x = self.pooled(tokens, mask, types, roles=roles)
        if tokens2 is not None:
            x = INTERACTIONS[self.config.interaction](x, self.pooled(tokens2, mask2))
        return x if self.head is None else self.head(x)

    def hidden(
        self,
        tokens: jax.Array,
        mask: jax.Array | None = None,
        types: jax.Array | None = None,
        *,
        roles: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
    ) -> jax.Array:
        """A vector for each token: (batch, length, features)."""
        x, known = self._entered(tokens, Tokens(mask, segment_ids=segment_ids, roles=roles), types)
        return self.leave(self._normed(self.blocks(x, known)[0]))

    def known(self, tokens: jax.Array, given: Tokens) -> Tokens:
        """The ``Tokens`` that the blocks receive: what the caller gave, and what the architecture adds."""
        return given

    def enter(self, x: jax.Array, known: Tokens) -> tuple[jax.Array, Tokens]:
        """The input of the first block, from the embeddings (batch, length, features) and what is known about them."""
        return x, known

    def leave(self, x: jax.Array) -> jax.Array:
        """The vectors of the tokens from a block's output: undoes :meth:`enter`."""
        return x

    def logits(self, hidden: jax.Array) -> jax.Array:
        """The head over the vocabulary: (..., features) to (..., vocab_size). A large vocabulary need not be applied to
        every token.

        Raises:
          ValueError: the model was made without it.
        """
        if self.masked_lm is None:
            raise ValueError("the model has no head over the vocabulary: make it with masked_lm=True")
        return self.masked_lm(hidden, self.embedding) if self.config.inputs == "tokens" else self.masked_lm(hidden)

    def pooled(  # type: ignore[override]
        self,
        tokens: jax.Array,
        mask: jax.Array | None = None,
        types: jax.Array | None = None,
        *,
        roles: jax.Array | None = None,
    ) -> jax.Array:
        """One vector for all tokens: (batch, features)."""
        return self.pool(self.hidden(tokens, mask, types, roles=roles), mask)

    def pool(self, hidden: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Pools (batch, length, features) to (batch, features)."""
        x = self.first(hidden) if self.config.pool == "token" else create_pool(self.config.pool)(hidden, mask)
        return unit(x) if self.config.normalize else x

    def first(self, hidden: jax.Array) -> jax.Array:
        """The first token's vector, through the pooler where there is one: (batch, features)."""
        return hidden[:, 0] if self.pooler is None else jnp.tanh(self.pooler(hidden[:, 0]))

    def features(
        self,
        tokens: jax.Array,
        indices: Sequence[int] | None = None,
        mask: jax.Array | None = None,
        types: jax.Array | None = None,
        *,
        roles: jax.Array | None = None,
        norm: bool = False,
    ) -> list[jax.Array]:
        """Outputs (batch, length, features) of some blocks, by default the last of each quarter, with ``norm`` after
        the final one where there is one."""
        indices = last_of_quarters(len(self.blocks)) if indices is None else indices
        x, known = self._entered(tokens, Tokens(mask, roles=roles), types)
        found = self.blocks(x, known, capture=indices)[1]
        return [self.leave(self._normed(x) if norm else x) for x in found]

    def reset_head(self, num_classes: int, *, rngs: nnx.Rngs | None = None) -> None:
        """Replaces the head by a fresh one for ``num_classes``; 0 removes it. The output is then the pooled one."""
        super().reset_head(num_classes, rngs=rngs)
        self.config = dataclasses.replace(self.config, output="pooled")

    def embed(
        self,
        tokens: jax.Array,
        types: jax.Array | None = None,
        *,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """The embeddings, (batch, length, features). Arguments as the model's, and ``positions``, (batch or 1, length),
        in place of those in each document.

        Raises:
          ValueError: a sequence longer than the position table, or "linear" inputs of another shape.
        """
        if self.config.inputs == "linear" and (tokens.ndim != 3 or tokens.shape[-1] != self.config.in_features):
            raise ValueError(
                f'a model with inputs="linear" takes (batch, length, {self.config.in_features}) numbers, got the shape '
                f"{tokens.shape}"
            )
        words = tokens if tokens.ndim == 3 and self.config.inputs == "tokens" else self.embedding(tokens)
        length, first, most = words.shape[1], self.config.position_offset, self.config.max_length
        if self.position is not None:
            check_length(length, most)
        table = None if self.position is None else self.position[...]
        if self.config.position == "sinusoid":
            table = jnp.asarray(sinusoids(first + (length if positions is None else most), words.shape[-1]))
        if table is None:
            x = words
        elif positions is not None:
            wide = jnp.promote_types(words.dtype, jnp.float32)
            x = words + broadcast(lookup(table, first + positions, wide), words.shape, words.dtype)
        elif segment_ids is None:
            x = words + broadcast(table[first : first + length], words.shape, words.dtype)
        else:
            x = words + lookup(table, first + Tokens(segment_ids=segment_ids).places(length), words.dtype)
        if self.types is not None:
            x = x + self.types(jnp.zeros(words.shape[:2], jnp.int32) if types is None else types)
        x = x if self.embedding_norm is None else self.embedding_norm(x)
        x = x if self.dropout is None else self.dropout(x)
        return x if self.projection is None else self.projection(x)

    def _entered(self, tokens: jax.Array, given: Tokens, types: jax.Array | None) -> tuple[jax.Array, Tokens]:
        """The input of the blocks; the padding of words already looked up is made finite."""
        known, positions = self.known(tokens, given), None
        if self.places is not None:
            if tokens.shape[1] > (most := self.config.randomized):
                raise ValueError(f"a sequence of {tokens.shape[1]} tokens is longer than randomized={most}")
            positions = self.places(known, tokens.shape[1])
            if self.config.position is None or all("positions" in mixer.honors for mixer in mixers(self.blocks)):
                known = known.replace(positions=positions)
        words = tokens if tokens.ndim == 2 else finite_padding(tokens, known.mask)
        return self.enter(self.embed(words, types, segment_ids=known.segment_ids, positions=positions), known)

    def _normed(self, x: jax.Array) -> jax.Array:
        return x if self.norm is None else self.norm(x)
