"""The causal language backbone: tokens in, the next token's logits out, whole or piece by piece.

    tokens -> embedding (+ position) -> blocks -> norm -> head

Transformers, Mamba, Titans, Routing Transformer and LongNet are this class with other mixers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx, struct

from layers.block import Block
from layers.broadcast import lookup
from layers.initializers import normal
from layers.linear import Embed, Linear
from layers.mixer import Mixer, MixerSpec, create_mixer
from layers.mlp import MLP, GatedMLP, gelu
from layers.norm import create_norm
from layers.position import default_positions
from layers.stack import Stack, drop_path_rates
from zoo.backbones.model import Model
from zoo.registry import ModelConfig


@dataclasses.dataclass(frozen=True)
class CausalConfig(ModelConfig):
    """Hyper-parameters of a causal language model.

    Attributes:
      vocab_size: tokens; the embedding has a row for each.
      features, depth, num_heads: width, blocks, attention heads.
      mlp: "swiglu", "gelu" or None: blocks without a channel mixer (Mamba).
      hidden: hidden width of the MLP; None is 4 features for "gelu", and 8/3 features rounded up to a
        multiple of 64 for "swiglu", which has the same number of parameters.
      norm, norm_epsilon: of the blocks and of the end.
      position: "learned" adds a table of ``max_length`` rows; None leaves order to the mixers.
      max_length: rows of a learned position table; longer sequences are refused.
      tied: the head is the transposed embedding.
      embedding_std: of the initial embedding.
    """

    vocab_size: int = 256
    features: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp: Literal["swiglu", "gelu"] | None = "swiglu"
    hidden: int | None = None
    norm: str = "rms"
    norm_epsilon: float = 1e-5
    position: Literal["learned"] | None = None
    max_length: int = 2048
    tied: bool = True
    embedding_std: float = 0.02


@struct.dataclass
class CausalState:
    """The state of a causal model.

    Attributes:
      blocks: the states of the blocks.
      length: (batch,) int32, tokens read in each row.
    """

    blocks: Any
    length: jax.Array


class Causal(Model):
    """A causal language model. Names: ``embedding``, ``position``, ``blocks.N``, ``norm``, ``head``."""

    stem = ("embedding", "position")
    undecayed = ("embedding", "position")
    without: ClassVar[Mapping[str, str]] = {"head": "no head: make the model with tied=True"}

    def __init__(self, config: CausalConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        common = {"dtype": c.dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        self.embedding = Embed(c.vocab_size, c.features, embedding_init=normal(c.embedding_std), **common)
        self.position = nnx.Param(normal(0.02)(rngs.params(), (c.max_length, c.features), c.param_dtype)) if c.position == "learned" else None
        self.dropout = nnx.Dropout(c.dropout, rngs=rngs) if c.dropout else None
        rates = drop_path_rates(c.drop_path, c.depth)
        self.blocks = Stack([self.make_block(i, rate, rngs=rngs) for i, rate in enumerate(rates)], remat=c.remat, scan=c.scan)
        self.norm = create_norm(c.norm, c.features, epsilon=c.norm_epsilon, **common)
        self.head = None if c.tied else Linear(c.features, c.vocab_size, use_bias=False, kernel_init=normal(c.embedding_std), **common)
        self.num_features = c.features

    def own_mixer(self, index: int) -> MixerSpec:
        """The architecture's own mixer of a block."""
        raise NotImplementedError

    def make_mixer(self, index: int, *, rngs: nnx.Rngs) -> Mixer:
        """The mixer of a block: the user's if given, else the architecture's."""
        c = self.config
        specs: Sequence[MixerSpec] = c.pattern or (c.mixer if c.mixer is not None else self.own_mixer(index),)
        hints = {"num_heads": c.num_heads, "depth": c.depth, "dropout": c.dropout, "dtype": c.dtype, "param_dtype": c.param_dtype}
        return create_mixer(specs[index % len(specs)], c.features, causal=True, hints=hints, rngs=rngs)

    def make_channel(self, *, rngs: nnx.Rngs) -> nnx.Module | None:
        """The channel mixer of a block."""
        c = self.config
        options = {"dropout": c.dropout, "use_bias": False, "dtype": c.dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        if c.mlp is None:
            return None
        if c.mlp == "swiglu":
            return GatedMLP(c.features, c.hidden or -(-8 * c.features // 3 // 64) * 64, **options)
        return MLP(c.features, c.hidden or 4 * c.features, activation=gelu, **options)

    def make_block(self, index: int, drop_path: float | None, *, rngs: nnx.Rngs) -> Block:
        """A block."""
        c = self.config
        return Block(
            self.make_mixer(index, rngs=rngs),
            self.make_channel(rngs=rngs),
            features=c.features,
            norm=c.norm,
            norm_epsilon=c.norm_epsilon,
            drop_path=drop_path,
            dtype=c.dtype,
            param_dtype=c.param_dtype,
            rngs=rngs,
        )

    def __call__(self, tokens: jax.Array, mask: jax.Array | None = None, positions: jax.Array | None = None) -> jax.Array:
        """Maps tokens (batch, length) int32 to logits (batch, length, vocab_size); ``mask`` is True for real tokens, padding trails."""
        return self.logits(self.hidden(tokens, mask, positions))

    def hidden(self, tokens: jax.Array, mask: jax.Array | None = None, positions: jax.Array | None = None) -> jax.Array:
        """What the head sees: (batch, length, features). A large vocabulary need not be applied to every token."""
        return self.norm(self.blocks(self._embed(tokens, positions), mask, positions)[0])

    def logits(self, hidden: jax.Array) -> jax.Array:
        """The head: (..., features) to (..., vocab_size)."""
        return self.embedding.attend(hidden) if self.head is None else self.head(hidden)

    def features(self, tokens: jax.Array, indices: Sequence[int] | None = None, mask: jax.Array | None = None) -> list[jax.Array]:
        """Outputs (batch, length, features) of some blocks, by default the last of each quarter."""
        depth = len(self.blocks)
        indices = [max(depth * (i + 1) // 4 - 1, 0) for i in range(4)] if indices is None else indices
        return self.blocks(self._embed(tokens, None), mask, capture=indices)[1]

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> CausalState:
        """The state before the first token; ``max_length`` is how many tokens caches must hold."""
        return CausalState(self.blocks.init_state(batch_size, max_length, dtype), jnp.zeros((batch_size,), jnp.int32))

    def extend(self, tokens: jax.Array, state: CausalState, mask: jax.Array | None = None) -> tuple[jax.Array, CausalState]:
        """Reads new tokens (batch, new); returns their logits and the new state."""
        hidden, state = self.extend_hidden(tokens, state, mask)
        return self.logits(hidden), state

    def extend_hidden(self, tokens: jax.Array, state: CausalState, mask: jax.Array | None = None) -> tuple[jax.Array, CausalState]:
        """As :meth:`extend`, without the head."""
        positions = state.length[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)
        x, blocks = self.blocks.extend(self._embed(tokens, positions), state.blocks, mask)
        new = jnp.full_like(state.length, tokens.shape[1]) if mask is None else mask.sum(1, dtype=jnp.int32)
        return self.norm(x), CausalState(blocks, state.length + new)

    def _embed(self, tokens: jax.Array, positions: jax.Array | None) -> jax.Array:
        x = self.embedding(tokens)
        if self.position is not None:
            if tokens.shape[1] > self.config.max_length:
                raise ValueError(f"a sequence of {tokens.shape[1]} tokens is longer than the position table: max_length is {self.config.max_length}")
            places = default_positions(tokens.shape[1]) if positions is None else positions
            x = x + lookup(self.position[...], places, x.dtype)
        return x if self.dropout is None else self.dropout(x)
