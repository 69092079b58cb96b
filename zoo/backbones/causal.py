"""The causal language backbone: tokens in, the next token's logits out, whole or piece by piece.

    tokens -> embedding (+ position) -> blocks -> norm -> head

GPT-2, Llama, Gemma, Mamba, RWKV-7, Titans, Routing Transformer and LongNet are this class with other mixers and
options.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx, struct

from layers.attention.multi_head import soft_cap
from layers.block import Order
from layers.broadcast import broadcast, lookup
from layers.drop import Dropout
from layers.experts import MixtureOfExperts
from layers.initializers import normal
from layers.linear import Embed, Linear
from layers.mixer import Mixer, Place, accepted, create_mixer
from layers.mlp import MLP, GatedMLP, gelu, gelu_tanh, unchanged
from layers.norm import create_norm
from layers.tokens import Tokens, continued
from primitives.exponential import silu
from suggestions import near
from zoo.backbones.model import Model, check_length, choose, drawn_places, last_of_quarters, mixers
from zoo.registry import ModelConfig

Mlp = Literal["swiglu", "geglu_tanh", "glu", "gelu", "gelu_tanh", "relu", "experts"]
MlpSpec = Mlp | Mapping[str, Any]
"""How a channel mixer is named: a key of :data:`MLPS`, or ``{"name": "experts", **options}``."""
MLPS: Mapping[str, tuple[type[MLP | GatedMLP | MixtureOfExperts], Callable[[jax.Array], jax.Array]]] = {
    "swiglu": (GatedMLP, silu),
    "geglu_tanh": (GatedMLP, gelu_tanh),
    "glu": (GatedMLP, unchanged),
    "gelu": (MLP, gelu),
    "gelu_tanh": (MLP, gelu_tanh),
    "relu": (MLP, jax.nn.relu),
    "experts": (MixtureOfExperts, silu),
}
"""The channel mixers of decoders: their class and activation."""


def make_mlp(config: Any, place: Place, *, rngs: nnx.Rngs, **options: Any) -> nnx.Module | None:
    """The channel mixer of a block that a configuration with the fields ``mlp``, ``hidden`` and ``mlp_bias`` of
    :class:`CausalConfig`, and possibly ``mlp_pattern``, asks for; ``options`` are further ones of its class.

    Raises:
      ValueError: an unknown name, experts whose number is not given or that have biases, or an option that the class
        does not take.
    """
    pattern, index = getattr(config, "mlp_pattern", None), place.index or 0
    spec = choose(pattern, place.stage or 0, index, place.depth or 1) if pattern else config.mlp
    spec = config.mlp if spec is None else spec
    if spec is None:
        return None
    own = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    name = own.pop("name", None)
    if name not in MLPS:
        raise ValueError(f"unknown channel mixer {name!r}{near(name, MLPS)}; known: {', '.join(MLPS)}")
    kind, activation = MLPS[name]
    options |= {"activation": activation, "dropout": config.dropout, **place.dtypes, **own}
    if kind is MixtureOfExperts:
        if config.mlp_bias:
            raise ValueError("experts have no biases: make the model with mlp_bias=False")
        if "num_experts" not in options:
            raise ValueError('how many experts? give mlp={"name": "experts", "num_experts": ...}')
        options["depth"] = place.depth or 1
    else:
        options["use_bias"] = config.mlp_bias
    usual = 4 * config.features if kind is MLP else -(-8 * config.features // 3 // 64) * 64
    hidden = options.pop("hidden", None) or config.hidden or usual
    if unknown := sorted(set(options) - accepted(kind)[0]):
        raise ValueError(f"channel mixer {name!r} has no option {unknown[0]!r}{near(unknown[0], accepted(kind)[0])}")
    return kind(config.features, hidden, **options, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class CausalConfig(ModelConfig):
    """Hyper-parameters of a causal language model.

    Attributes:
      vocab_size: number of tokens; the embedding has a row for each.
      features, depth, num_heads: width, number of blocks, attention heads.
      mlp: a key of :data:`MLPS`, or ``{"name": key, **options}`` (for :class:`layers.MixtureOfExperts`, say), or None:
        blocks without a channel mixer (Mamba).
      mlp_pattern: channel mixers of successive blocks, in the form of ``pattern``; None: ``mlp`` for all.
      hidden: hidden width of the MLP; None is 4 features or, for gated MLPs, 8/3 features, which has the same number of
        parameters, rounded up to a multiple of 64.
      mlp_bias: whether the MLP has biases.
      norm, norm_epsilon: kind and epsilon of the norms of the blocks and at the end.
      norm_order: of the blocks; with "post" there is no norm at the end.
      position: "learned" adds a table of ``max_length`` rows; None leaves positions to the mixers.
      max_length: rows of a learned position table; longer sequences are refused.
      randomized: positions are sampled out of ``max_length``, for sequences of at most this many tokens, and are the
        same for the table and all mixers (:class:`layers.RandomizedPlaces`); None: they are 0, 1, 2, ...
      tied: whether the head is the transposed embedding.
      head_bias: whether an untied head has a bias.
      embedding_std: standard deviation of the initial embedding.
      embedding_scale: embeddings are multiplied by it; "sqrt" is the root of ``features``.
      embedding_norm: whether the embeddings are normalized.
      logit_cap: logits are ``cap tanh(logits / cap)``; None for no cap.
    """

    vocab_size: int = 256
    features: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp: MlpSpec | None = "swiglu"
    mlp_pattern: tuple[MlpSpec, ...] | Mapping[Any, MlpSpec] | None = None
    hidden: int | None = None
    mlp_bias: bool = False
    norm: str = "rms"
    norm_epsilon: float = 1e-5
    norm_order: Order = "pre"
    position: Literal["learned"] | None = None
    max_length: int = 2048
    randomized: int | None = None
    tied: bool = True
    head_bias: bool = False
    embedding_std: float = 0.02
    embedding_scale: float | Literal["sqrt"] = 1.0
    embedding_norm: bool = False
    logit_cap: float | None = None


@struct.dataclass
class CausalState:
    """The state of a causal model.

    Attributes:
      blocks: the states of the blocks.
      length: (batch,) int32, tokens read of each row's current document.
      segment: (batch,) int32, the id of that document.
    """

    blocks: Any
    length: jax.Array
    segment: jax.Array


class Causal(Model):
    """A language model. Names: ``embedding``, ``embedding_norm``, ``position``, ``blocks.N``, ``norm``, ``head``."""

    stem: ClassVar[tuple[str, ...]] = ("embedding", "embedding_norm", "position")
    undecayed: ClassVar[tuple[str, ...]] = ("embedding", "position")
    without: ClassVar[Mapping[str, str]] = {"head": "no head: make the model with tied=True"}

    def __init__(self, config: CausalConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        common = {"dtype": c.dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        self.embedding = Embed(c.vocab_size, c.features, embedding_init=normal(c.embedding_std), **common)
        self.position = (
            nnx.Param(normal(0.02)(rngs.params(), (c.max_length, c.features), c.param_dtype))
            if c.position == "learned"
            else None
        )
        self.places = drawn_places(c, rngs, longest=c.randomized)
        norm = {"epsilon": c.norm_epsilon, **common}
        self.embedding_norm = create_norm(c.norm, c.features, **norm) if c.embedding_norm else None
        self.dropout = Dropout(c.dropout, rngs=rngs) if c.dropout else None
        self.blocks = self.make_stack(rngs=rngs)
        self.norm = None if c.norm_order == "post" else create_norm(c.norm, c.features, **norm)
        self.head = (
            None
            if c.tied
            else Linear(c.features, self.outputs, use_bias=c.head_bias, kernel_init=normal(c.embedding_std), **common)
        )
        self.num_features = c.features

    @property
    def outputs(self) -> int:
        """Outputs of an untied head: one for each token, and any that a model leaves unused."""
        return self.config.vocab_size

    def make_mixer(self, place: Place, *, rngs: nnx.Rngs) -> Mixer:
        return create_mixer(self.mixer_spec(place), self.config.features, causal=True, place=place, rngs=rngs)

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module | None:
        return make_mlp(self.config, place, rngs=rngs)

    def per_block(self) -> Any:
        """Additional inputs of each single block: a tree of arrays whose first axis is the depth; None for nothing."""
        return None

    def handed_on(self, x: jax.Array) -> Any:
        """What the first block gets beside ``x`` (batch, length, features) and blocks pass on; None for nothing."""
        return None

    def put_in(
        self, x: jax.Array, known: Tokens, places: jax.Array | None = None
    ) -> tuple[jax.Array, Tokens, Callable[[jax.Array], jax.Array]]:
        """Inserts tokens of the model's own among those of the text.

        Args:
          x: (batch, length, features), embeddings.
          known: what is known about these tokens.
          places: (batch, length), the positions in their documents of tokens that continue earlier ones; None for whole
            rows.

        Returns:
          The input of the blocks, what is known about its tokens, and a function that selects the text's tokens from
          the blocks' output.
        """
        return x, known, lambda y: y

    def block_options(self, place: Place) -> dict[str, Any]:
        c = self.config
        return {"norm": c.norm, "norm_epsilon": c.norm_epsilon, "order": c.norm_order}

    def __call__(
        self,
        tokens: jax.Array,
        mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
    ) -> jax.Array:
        """Maps tokens to the logits of the next ones.

        Args:
          tokens: int32 (batch, length).
          mask: True for real tokens; padding trails.
          positions: int32 (batch, length); default: 0, 1, 2, ... in each document.
          segment_ids: int32 (batch, length), the document of each token of a row that holds several.

        Returns:
          Logits (batch, length, vocab_size).
        """
        return self.logits(self.hidden(tokens, mask, positions, segment_ids))

    def hidden(
        self,
        tokens: jax.Array,
        mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
    ) -> jax.Array:
        """The input of the head, (batch, length, features): a large vocabulary need not be applied to every token."""
        x, known, taken = self.put_in(*self._enter(tokens, Tokens(mask, positions, segment_ids)))
        return self._normed(taken(self.through(x, known)[0]))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """The head: (..., features) to (..., vocab_size)."""
        logits = self.embedding.attend(hidden) if self.head is None else self.head(hidden)
        return logits if self.config.logit_cap is None else soft_cap(self.config.logit_cap)(logits)

    def features(
        self,
        tokens: jax.Array,
        indices: Sequence[int] | None = None,
        mask: jax.Array | None = None,
        *,
        norm: bool = False,
    ) -> list[jax.Array]:
        """Outputs (batch, length, features) of some blocks, by default the last of each quarter, with ``norm`` after
        the final one.
        """
        indices = last_of_quarters(len(self.blocks)) if indices is None else indices
        x, known, taken = self.put_in(*self._enter(tokens, Tokens(mask)))
        found = [taken(y) for y in self.through(x, known, indices)[1]]
        return [self._normed(x) for x in found] if norm else found

    @property
    def most_tokens(self) -> int | None:
        """Length of the longest document that the model has positions for; None: no limit."""
        if self.places is not None:
            return self.config.randomized
        return None if self.position is None else self.config.max_length

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> CausalState:
        """The state before the first token; ``max_length`` is how many tokens caches must hold.

        Raises:
          ValueError: ``max_length`` exceeds the number of randomized positions.
        """
        if self.places is not None:
            self.places.check(max_length)
        length, segment = jnp.zeros((batch_size,), jnp.int32), jnp.zeros((batch_size,), jnp.int32)
        return CausalState(self.blocks.init_state(batch_size, max_length, dtype), length, segment)

    def extend(
        self, tokens: jax.Array, state: CausalState, mask: jax.Array | None = None, segment_ids: jax.Array | None = None
    ) -> tuple[jax.Array, CausalState]:
        """Reads new tokens (batch, new); returns their logits and the new state. Without ``segment_ids`` they continue
        the document of the last token.
        """
        hidden, state = self.extend_hidden(tokens, state, mask, segment_ids)
        return self.logits(hidden), state

    def extend_hidden(
        self, tokens: jax.Array, state: CausalState, mask: jax.Array | None = None, segment_ids: jax.Array | None = None
    ) -> tuple[jax.Array, CausalState]:
        """As :meth:`extend`, without the head."""
        places, length, segment = continued(tokens.shape[1], state.length, state.segment, mask, segment_ids)
        known, positions = Tokens(mask, segment_ids=segment_ids), places
        if self.places is not None:
            positions = self.places.at(places)
            known = self._heard(known.replace(positions=positions))
        x, known, taken = self.put_in(self._embed(tokens, positions), known, places)
        x, blocks = self.through_next(x, known, state, places)
        return self._normed(taken(x)), CausalState(blocks, length, segment)

    def through(
        self, x: jax.Array, known: Tokens, capture: Sequence[int] = ()
    ) -> tuple[jax.Array, Sequence[jax.Array]]:
        """The blocks on whole rows: the output of the last one, and those of the blocks ``capture``."""
        beside = {"shared": self.handed_on(x), "per_block": self.per_block()}
        x, found, *_ = self.blocks(x, known, capture=capture, **beside)
        return x, found

    def through_next(self, x: jax.Array, known: Tokens, state: CausalState, places: jax.Array) -> tuple[jax.Array, Any]:
        """The blocks on tokens that continue those in ``state``, at the positions ``places``: the output of the last
        one, and the new states of all."""
        beside = {"shared": self.handed_on(x), "per_block": self.per_block()}
        x, blocks, *_ = self.blocks.extend(x, state.blocks, known, **beside)
        return x, blocks

    def _normed(self, x: jax.Array) -> jax.Array:
        """The output of the last block as the head sees it."""
        return x if self.norm is None else self.norm(x)

    def _enter(self, tokens: jax.Array, known: Tokens) -> tuple[jax.Array, Tokens]:
        """The input of the first block, and the ``Tokens`` that the blocks receive."""
        if self.places is not None and known.positions is None:
            known = known.replace(positions=self.places(known, tokens.shape[1]))
        return self._embed(tokens, known.places(tokens.shape[1])), self._heard(known)

    def _heard(self, known: Tokens) -> Tokens:
        """``known`` without positions if the table already encodes them and a mixer makes no use of them."""
        if self.position is None or all("positions" in mixer.honors for mixer in mixers(self.blocks)):
            return known
        return known.without("positions")

    def _embed(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        x, scale = self.embedding(tokens), self.config.embedding_scale
        if scale != 1.0:
            x = x * (self.config.features**0.5 if scale == "sqrt" else scale)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        if self.position is not None:
            check_length(tokens.shape[1], self.config.max_length)
            # Rows may share their positions: cast to a narrow dtype before the broadcast, their gradients would be
            # summed in it.
            wide = jnp.promote_types(x.dtype, jnp.float32)
            x = x + broadcast(lookup(self.position[...], positions, wide), x.shape, x.dtype)
        return x if self.dropout is None else self.dropout(x)
