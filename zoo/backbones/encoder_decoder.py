"""The encoder-decoder backbone: reads a source as a whole and writes a target token by token.

    source -> embedding (+ position) -> blocks -> norm = context
    target -> embedding (+ position) -> blocks, which also read the context -> norm -> head

A block of the decoder has a third branch between the two of every block: x = x + cross(norm(x), context), attention
from the target to the context (Attention Is All You Need, Vaswani et al., 2017, arXiv:1706.03762, section 3.1). The
encoder takes any mixer, and runs a causal one in both directions; the decoder takes any causal mixer. T5 and BART are
this class with other options.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx, struct

from layers.attention.relative import Relative
from layers.block import Branch, Order
from layers.broadcast import broadcast, lookup
from layers.combinators import bidirectional, on_sequence
from layers.drop import Dropout
from layers.initializers import Initializer, normal, truncated_normal
from layers.linear import Embed, Linear
from layers.mixer import Mixer, MixerSpec, Place, create_mixer
from layers.module import Module
from layers.norm import create_norm
from layers.stack import Stack
from layers.tokens import Tokens, continued
from zoo.backbones.causal import Mlp, make_mlp
from zoo.backbones.model import Model, check_length, last_of_quarters
from zoo.registry import ModelConfig

ENCODER, DECODER = 0, 1
"""The stages of the two sides."""


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig(ModelConfig):
    """Hyper-parameters of an encoder-decoder.

    ``mixer`` replaces the mixers of both sides; the encoder is stage 0 and the decoder stage 1 of a ``pattern``:
    ``{"0.every": "hydra"}`` replaces those of the encoder alone. Stochastic depth grows through both.

    Attributes:
      vocab_size: number of tokens of both sides; the embedding, which they share, has a row for each.
      features, num_heads: width, attention heads.
      depth, encoder_depth: blocks of the decoder and of the encoder; None: as many as the decoder's.
      mlp, hidden, mlp_bias: the channel mixers, as of :class:`zoo.backbones.causal.CausalConfig`.
      norm, norm_epsilon, norm_order: of the blocks; "pre" has a norm at the end of each side too.
      position: "learned" adds a table to each side; None leaves positions to the mixers.
      position_offset: rows of the tables before that of the first position.
      max_length: further rows of a table; longer sequences are refused. Without a table, a usual length.
      tied: whether the head is the transposed embedding.
      embedding_std: standard deviation of the initial embedding.
      embedding_scale: embeddings are multiplied by it; "sqrt" is the root of ``features``.
      embedding_norm: whether each side's embeddings, positions included, are normalized.
      source_start: the token that begins a source; None for none.
      start_token: the token that the decoder reads first.
      end_token: the token that ends a target, and a source; None for none.
    """

    vocab_size: int = 256
    features: int = 512
    depth: int = 6
    encoder_depth: int | None = None
    num_heads: int = 8
    mlp: Mlp | None = "gelu"
    hidden: int | None = None
    mlp_bias: bool = True
    norm: str = "layer"
    norm_epsilon: float = 1e-5
    norm_order: Order = "pre"
    position: Literal["learned"] | None = None
    position_offset: int = 0
    max_length: int = 512
    tied: bool = True
    embedding_std: float = 0.02
    embedding_scale: float | Literal["sqrt"] = 1.0
    embedding_norm: bool = False
    source_start: int | None = None
    start_token: int = 0
    end_token: int | None = 1


@struct.dataclass
class EncoderDecoderState:
    """The state of a decoder and the context that it reads.

    Attributes:
      blocks: the states of its blocks; that of cross-attention holds the keys and values of the context and its mask.
      length: (batch,) int32, tokens read so far of each row's target.
    """

    blocks: Any
    length: jax.Array


class Side(Module):
    """The encoder or the decoder without the embedding: ``position``, ``embedding_norm``, ``blocks.N``, ``norm``.

    Attributes:
      relative: makes the relative position biases that blocks pass on beside x, if an architecture has them.
    """

    undecayed: ClassVar[tuple[str, ...]] = ("position",)
    relative: Relative | None = None

    def __init__(self, c: EncoderDecoderConfig, blocks: Stack, features: int, *, rngs: nnx.Rngs):
        norm = {"epsilon": c.norm_epsilon, "dtype": c.dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        rows = (c.position_offset + c.max_length, features)
        learned = c.position == "learned"
        self.position = nnx.Param(normal(0.02)(rngs.params(), rows, c.param_dtype)) if learned else None
        self.embedding_norm = create_norm(c.norm, features, **norm) if c.embedding_norm else None
        self.blocks = blocks
        self.norm = create_norm(c.norm, features, **norm) if c.norm_order == "pre" else None
        self.dropout = Dropout(c.dropout, rngs=rngs) if c.dropout else None
        self.offset = c.position_offset

    def enter(self, words: jax.Array, places: jax.Array) -> jax.Array:
        """The input of the first block, from embeddings (batch, length, features) of tokens at ``places``, (batch or 1,
        length) int32.

        Raises:
          ValueError: more tokens than the table of positions has rows.
        """
        x = words
        if self.position is not None:
            check_length(words.shape[1], self.position.shape[0] - self.offset)
            # Rows may share their positions: cast to a narrow dtype before the broadcast, their gradients would be
            # summed in it.
            wide = jnp.promote_types(x.dtype, jnp.float32)
            x = x + broadcast(lookup(self.position[...], self.offset + places, wide), x.shape, x.dtype)
        x = x if self.embedding_norm is None else self.embedding_norm(x)
        return x if self.dropout is None else self.dropout(x)

    def leave(self, x: jax.Array) -> jax.Array:
        """The output of the side, from the last block's output."""
        if self.norm is None:
            return x
        return self.norm(x) if self.dropout is None else self.dropout(self.norm(x))


class EncoderDecoder(Model):
    """An encoder-decoder. Names: ``embedding``, ``encoder.*`` and ``decoder.*`` as of :class:`Side`, ``head``.

    Masks are bool (batch, length), True for real tokens; padding trails. Beside the hooks of :class:`Model`,
    ``own_cross(place)`` is the spec of the mixer that reads the context.

    Attributes:
      kernel_init: of the MLPs and of an untied head.
    """

    inputs: ClassVar[tuple[str, ...]] = ("source", "target")
    stem: ClassVar[tuple[str, ...]] = ("embedding",)
    undecayed: ClassVar[tuple[str, ...]] = ("embedding",)
    without: ClassVar[Mapping[str, str]] = {"head": "no head: make the model with tied=True"}
    kernel_init: ClassVar[Initializer] = truncated_normal(0.02)

    def __init__(self, config: EncoderDecoderConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        common = {"dtype": c.dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        self.num_features = width = self.outer_features
        self.embedding = Embed(c.vocab_size, width, embedding_init=normal(c.embedding_std), **common)
        self.encoder = Side(c, self.make_stack(ENCODER, rngs=rngs), width, rngs=rngs)
        self.decoder = Side(c, self.make_stack(DECODER, rngs=rngs), width, rngs=rngs)
        head = {"use_bias": False, "kernel_init": self.kernel_init, **common}
        self.head = None if c.tied else Linear(width, c.vocab_size, **head)

    @property
    def depths(self) -> tuple[int, ...]:
        c = self.config
        return (c.depth if c.encoder_depth is None else c.encoder_depth, c.depth)

    @property
    def most_tokens(self) -> int | None:
        """Length of the longest source or target that the model has positions for; None: no limit."""
        return None if self.decoder.position is None else self.config.max_length

    @property
    def outer_features(self) -> int:
        """Features of the embedding, the context and the head's input."""
        return self.config.features

    def own_mixer(self, place: Place) -> MixerSpec:
        return "attention"

    def handed_on(self, stage: int) -> Any:
        """What the first block of a side gets beside x and blocks pass on; None for nothing."""
        return None

    def own_cross(self, place: Place) -> MixerSpec:
        """The mixer by which a block of the decoder reads the context."""
        return {"name": "attention", "context_features": self.outer_features}

    def make_mixer(self, place: Place, *, rngs: nnx.Rngs) -> Mixer:
        spec, features = self.mixer_spec(place), self.config.features
        if place.stage == ENCODER:
            return on_sequence(bidirectional(spec, features, place=place, rngs=rngs))
        return create_mixer(spec, features, causal=True, place=place, rngs=rngs)

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module | None:
        return make_mlp(self.config, place, kernel_init=self.kernel_init, rngs=rngs)

    def make_branches(self, place: Place, *, rngs: nnx.Rngs) -> dict[str, nnx.Module | Branch]:
        branches = super().make_branches(place, rngs=rngs)
        if place.stage == ENCODER:
            return branches
        cross = create_mixer(self.own_cross(place), self.config.features, place=place, rngs=rngs)
        return {"mixer": branches.pop("mixer"), "cross": cross, **branches}

    def block_options(self, place: Place) -> dict[str, Any]:
        c = self.config
        return {"norm": c.norm, "norm_epsilon": c.norm_epsilon, "order": c.norm_order}

    def __call__(
        self,
        source: jax.Array,
        target: jax.Array,
        source_mask: jax.Array | None = None,
        target_mask: jax.Array | None = None,
    ) -> jax.Array:
        """Maps a source and the target so far to the logits of the target's next tokens.

        Args:
          source: int32 (batch, source_length).
          target: int32 (batch, target_length), what the decoder reads: the start token, then the target without its
            last token.
          source_mask, target_mask: True for real tokens; padding trails.

        Returns:
          Logits (batch, target_length, vocab_size).
        """
        return self.logits(self.hidden(source, target, source_mask, target_mask))

    def hidden(
        self,
        source: jax.Array,
        target: jax.Array,
        source_mask: jax.Array | None = None,
        target_mask: jax.Array | None = None,
    ) -> jax.Array:
        """The input of the head: (batch, target_length, features)."""
        return self.decode(target, self.encode(source, source_mask), target_mask, source_mask)

    def encode(self, source: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """The context that the decoder reads: (batch, source_length, features)."""
        known = Tokens(mask)
        x = self.encoder.enter(self.words(source), known.places(source.shape[1]))
        return self.encoder.leave(self.joined(self.encoder.blocks(x, known, shared=self.handed_on(ENCODER))[0]))

    def decode(
        self,
        target: jax.Array,
        context: jax.Array,
        mask: jax.Array | None = None,
        context_mask: jax.Array | None = None,
    ) -> jax.Array:
        """As :meth:`hidden`, for a source that is already encoded."""
        known = Tokens(mask, context=context, context_mask=context_mask)
        x = self.decoder.enter(self.words(target), known.places(target.shape[1]))
        return self.decoder.leave(self.joined(self.decoder.blocks(x, known, shared=self.handed_on(DECODER))[0]))

    def words(self, tokens: jax.Array) -> jax.Array:
        """Embeddings of tokens: (batch, length, features)."""
        x, scale = self.embedding(tokens), self.config.embedding_scale
        return x if scale == 1.0 else x * (self.config.features**0.5 if scale == "sqrt" else scale)

    def joined(self, x: jax.Array) -> jax.Array:
        """The input of the last norm, from the last block's output."""
        return x

    def logits(self, hidden: jax.Array) -> jax.Array:
        """The head: (..., features) to (..., vocab_size)."""
        return self.embedding.attend(hidden) if self.head is None else self.head(hidden)

    def features(
        self,
        source: jax.Array,
        target: jax.Array,
        indices: Sequence[int] | None = None,
        source_mask: jax.Array | None = None,
        target_mask: jax.Array | None = None,
        *,
        norm: bool = False,
    ) -> list[jax.Array]:
        """Outputs (batch, target_length, features) of some blocks of the decoder, by default the last of each quarter,
        with ``norm`` after the final one where there is one.
        """
        indices = last_of_quarters(len(self.decoder.blocks)) if indices is None else indices
        context = self.encode(source, source_mask)
        known = Tokens(target_mask, context=context, context_mask=source_mask)
        x = self.decoder.enter(self.words(target), known.places(target.shape[1]))
        found = self.decoder.blocks(x, known, capture=indices, shared=self.handed_on(DECODER))[1]
        return [self.decoder.leave(self.joined(x)) for x in found] if norm else found

    def init_state(
        self,
        batch_size: int,
        max_length: int | None = None,
        dtype: Any = jnp.float32,
        *,
        context: jax.Array | None = None,
        context_mask: jax.Array | None = None,
    ) -> EncoderDecoderState:
        """The state before the first token of the target.

        Args:
          batch_size: rows.
          max_length: how many tokens of the target caches must hold.
          dtype: of caches and states.
          context: the output of :meth:`encode`, (batch_size, source_length, features).
          context_mask: the source's mask.

        Raises:
          ValueError: no context, or one with another number of rows.
        """
        if context is None:
            raise ValueError(
                "a decoder reads a source, which its state holds: "
                "model.init_state(batch_size, max_length, context=model.encode(source, mask), context_mask=mask)"
            )
        if context.shape[0] != batch_size:
            raise ValueError(f"the context has {context.shape[0]} rows and the state {batch_size}")
        blocks = self.decoder.blocks.init_state(batch_size, max_length, dtype, context, context_mask)
        return EncoderDecoderState(blocks, jnp.zeros((batch_size,), jnp.int32))

    def extend(
        self, tokens: jax.Array, state: EncoderDecoderState, mask: jax.Array | None = None
    ) -> tuple[jax.Array, EncoderDecoderState]:
        """Reads new tokens (batch, new) of the target; returns their logits and the new state."""
        hidden, state = self.extend_hidden(tokens, state, mask)
        return self.logits(hidden), state

    def extend_hidden(
        self, tokens: jax.Array, state: EncoderDecoderState, mask: jax.Array | None = None
    ) -> tuple[jax.Array, EncoderDecoderState]:
        """As :meth:`extend`, without the head."""
        places, length, _ = continued(tokens.shape[1], state.length, jnp.zeros_like(state.length), mask)
        x = self.decoder.enter(self.words(tokens), places)
        x, blocks, *_ = self.decoder.blocks.extend(x, state.blocks, Tokens(mask), shared=self.handed_on(DECODER))
        return self.decoder.leave(self.joined(x)), EncoderDecoderState(blocks, length)

    def depth_of(self, path: list[str]) -> int:
        before = sum(self.depths[: path[0] == "decoder"])
        if path[0] in ("encoder", "decoder"):
            if path[1] == "blocks":
                return before + int(path[2]) + 1
            if path[1] != "norm":
                return 0
            return self.depths[ENCODER] if path[0] == "encoder" else sum(self.depths) + 1
        return 0 if path[0] in self.stem else sum(self.depths) + 1
