"""Pointer Networks (Vinyals et al., 2015, arXiv:1506.03134): the output is a sequence of positions of the input.

    encoder   e_0, ..., e_n = LSTM(end, x_1, ..., x_n)
    decoder   d_i = LSTM(x at the previous output position, or start), from the encoder's last state
    pointer   u_ij = v . tanh(W_1 e_j + W_2 d_i)        p(C_i = j | C_1 ... C_{i-1}, x) = softmax(u_i)_j    (equation 3)

The logits are over the input positions, so that their number grows with the input and a model can be used on more
points than it was trained on. Position 0 is the end of the output, which the encoder reads before the points, so that
padding comes last; positions 1 to n are the points, as the paper counts them. The paper's models have one LSTM of 256
or 512 features on either side, with weights uniform between -0.08 and 0.08, and read the coordinates directly; here a
linear map is applied to them first, as in :class:`zoo.backbones.encoder.Encoder`, and the LSTMs have PyTorch's
initialization. The nano size is our choice.

``outputs`` makes the paper's baseline (section 2.2): a decoder with attention and a fixed dictionary of positions,

    a_i = softmax(u_i)        d'_i = sum_j a_ij e_j        p(C_i | C_1 ... C_{i-1}, x) = softmax(W [d'_i, d_i])

which reads the points in the same way, but can't output a position that the dictionary lacks.

``mixer`` is any causal mixer whose state has a constant size, such as "gru", "mamba", "retention" or "rwkv7".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax import lax

from layers.attention.additive import AdditiveAttention
from layers.broadcast import broadcast
from layers.drop import Dropout
from layers.initializers import uniform
from layers.linear import Linear
from layers.mixer import Mixer, MixerSpec, Place, create_mixer, finite_padding
from layers.module import Module
from layers.stack import Stack
from layers.tokens import Known, Tokens
from zoo.backbones.model import Model, last_of_quarters
from zoo.registry import ModelConfig, register_family

ENCODER, DECODER = 0, 1
"""The stages of the two sides."""
END = 0
"""The position that ends an output, which the decoder also reads first."""


@dataclasses.dataclass(frozen=True)
class PointerNetworkConfig(ModelConfig):
    """Hyper-parameters of a pointer network.

    Attributes:
      in_features: coordinates of a point.
      features: width of both sides and of the pointer.
      depth: layers of each side.
      num_heads: number of heads, for mixers that have heads.
      outputs: number of positions in a fixed dictionary; None: the model points at its input, of any length.
    """

    in_features: int = 2
    features: int = 256
    depth: int = 1
    num_heads: int = 4
    outputs: int | None = None


@struct.dataclass
class Read:
    """The encoding of a source.

    Attributes:
      words: (batch, n + 1, features), the decoder's inputs by position: the one at the last output position is read
        next; that of position 0 is the start vector.
      keys: (batch, n + 1, features), the encoder outputs that are pointed at; that of position 0 is the end.
      states: the states of the encoder's layers after the source.
    """

    words: jax.Array
    keys: jax.Array
    states: Any


@struct.dataclass
class PointerState:
    """The state of a decoder: that of its layers, its inputs and keys as in :class:`Read`, and the keys' mask (batch, n
    + 1).
    """

    states: Any
    words: jax.Array
    keys: jax.Array
    mask: jax.Array | None


class MixerAlone(Module):
    """A layer that consists of a mixer alone, without norm, residual connection and channel mixer."""

    def __init__(self, mixer: Mixer):
        self.mixer = mixer

    def __call__(self, x: jax.Array, tokens: Known = None, shared: Any = None, own: Any = None) -> jax.Array:
        """Maps (batch, length, features) to the same shape."""
        return self.mixer(x, tokens)

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> Any:
        """The initial state of the mixer."""
        return self.mixer.init_state(batch_size, max_length, dtype)

    def extend(self, x: jax.Array, state: Any, tokens: Known = None, shared: Any = None, own: Any = None) -> Any:
        """As :meth:`Mixer.extend`."""
        return self.mixer.extend(x, state, tokens)


class Layers(Module):
    """One side of the model. Names: ``blocks.N.mixer``."""

    def __init__(self, blocks: Stack):
        self.blocks = blocks


class PointerNetwork(Model):
    """A pointer network. Names: ``embedding`` (linear), ``start``, ``end``, ``encoder.blocks.N.mixer.*``,
    ``decoder.blocks.N.mixer.*``, ``pointer.*`` as of :class:`AdditiveAttention`, and with ``outputs`` ``positions``
    (linear).
    """

    inputs: ClassVar[tuple[str, ...]] = ("source",)
    stem: ClassVar[tuple[str, ...]] = ("embedding", "start", "end")
    end_position: ClassVar[int] = END

    def __init__(self, config: PointerNetworkConfig, *, rngs: nnx.Rngs):
        """Builds the model.

        Raises:
          ValueError: a mixer that is not causal or whose state grows with the length, stochastic depth, or ``outputs``
            below 1.
        """
        c = self.config = config
        if c.drop_path:
            raise ValueError("a pointer network has no residual branches to drop: make it without drop_path")
        if c.outputs is not None and c.outputs < 1:
            raise ValueError(f"outputs={c.outputs}: a dictionary has at least 1 position; None points at the input")
        common = {"dtype": c.dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        first = uniform(0.08)
        self.num_features = c.features
        self.embedding = Linear(c.in_features, c.features, **common)
        self.start = nnx.Param(first(rngs.params(), (c.features,), c.param_dtype))
        self.end = nnx.Param(first(rngs.params(), (c.features,), c.param_dtype))
        self.dropout = Dropout(c.dropout, rngs=rngs) if c.dropout else None
        self.encoder = Layers(self.make_stack(ENCODER, rngs=rngs))
        self.decoder = Layers(self.make_stack(DECODER, rngs=rngs))
        self.pointer = AdditiveAttention(c.features, kernel_init=first, **common)
        self.positions = None if c.outputs is None else Linear(2 * c.features, c.outputs + 1, **common)

    @property
    def depths(self) -> tuple[int, ...]:
        return (self.config.depth,) * 2

    def own_mixer(self, place: Place) -> MixerSpec:
        return "lstm"

    def make_mixer(self, place: Place, *, rngs: nnx.Rngs) -> Mixer:
        """A causal mixer.

        Raises:
          ValueError: the mixer is not causal, or its state grows with the length.
        """
        mixer = create_mixer(self.mixer_spec(place), self.config.features, causal=True, place=place, rngs=rngs)
        sizes = [jax.tree.map(jnp.shape, jax.eval_shape(lambda n=n: mixer.init_state(1, n))) for n in (128, 256)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"the decoder of a pointer network starts from the encoder's state, and that of "
                f"{type(mixer).__name__} grows with the length: take a recurrent mixer, as mixer='gru'"
            )
        return mixer

    def make_block(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module:
        return MixerAlone(self.make_mixer(place, rngs=rngs))

    def __call__(
        self,
        source: jax.Array,
        target: jax.Array | None = None,
        source_mask: jax.Array | None = None,
        target_mask: jax.Array | None = None,
        *,
        steps: int | None = None,
    ) -> jax.Array:
        """Maps points to the logits of successive output positions.

        Args:
          source: (batch, n, in_features).
          target: int32 (batch, length), the positions that the decoder reads (teacher forcing): 0, then the true ones
            without the last. None decodes greedily.
          source_mask, target_mask: bool (batch, n) and (batch, length), True for real points and positions; padding
            comes last.
          steps: number of positions to decode without a target; None is n + 2: each point once, the first again, and
            the end.

        Returns:
          Logits (batch, length or steps, n + 1); minus infinity for points that are not real.

        Raises:
          ValueError: points with the wrong number of coordinates, more points than the dictionary has positions, or a
            target position without a point.
        """
        read = self.encode(source, source_mask)
        state = self.init_state(source.shape[0], context=read, context_mask=source_mask)
        if target is not None:
            return self.extend(target, state, target_mask)[0]

        def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
            before, state = carry
            logits, state = self.extend(before[:, None], state)
            return (jnp.argmax(logits[:, 0], -1).astype(jnp.int32), state), logits[:, 0]

        first = (jnp.full((source.shape[0],), END, jnp.int32), state)
        logits = lax.scan(step, first, None, length=source.shape[1] + 2 if steps is None else steps)[1]
        return jnp.moveaxis(logits, 0, 1)

    def encode(self, source: jax.Array, mask: jax.Array | None = None) -> Read:
        """Encodes points (batch, n, in_features), with ``mask`` bool (batch, n).

        Raises:
          ValueError: points with the wrong number of coordinates, or more points than the dictionary has positions.
        """
        if source.ndim != 3 or source.shape[-1] != self.config.in_features:
            raise ValueError(
                f"the model takes points of {self.config.in_features} numbers, (batch, points, "
                f"{self.config.in_features}), got the shape {source.shape}: in_features= sets another number"
            )
        if self.config.outputs is not None and source.shape[1] > self.config.outputs:
            raise ValueError(
                f"the source has {source.shape[1]} points, and the decoder a fixed dictionary of {self.config.outputs} "
                f"positions: make the model with outputs={source.shape[1]}, or with outputs=None, which points at any "
                f"number"
            )
        start, end = self._words(source, mask)
        empty = self.encoder.blocks.init_state(source.shape[0], None, end.dtype)
        keys, states = self.encoder.blocks.extend(end, empty, Tokens(_with_end(mask)))
        return Read(start, keys, states)

    def _words(self, source: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """The points, after the start and after the end: both (batch, n + 1, features)."""
        points = self.embedding(finite_padding(source, mask))
        points = points if self.dropout is None else self.dropout(points)
        shape = (points.shape[0], 1, points.shape[-1])
        start, end = (broadcast(vector[...], shape, points.dtype) for vector in (self.start, self.end))
        return jnp.concatenate([start, points], 1), jnp.concatenate([end, points], 1)

    def init_state(
        self,
        batch_size: int,
        max_length: int | None = None,
        dtype: Any = jnp.float32,
        *,
        context: Read | None = None,
        context_mask: jax.Array | None = None,
    ) -> PointerState:
        """The decoder's state before the first position.

        Args:
          batch_size: number of rows.
          max_length, dtype: ignored, for the interface of other decoders; the state has the size and dtype of the
            encoder's.
          context: the result of :meth:`encode`.
          context_mask: the mask of the points.

        Raises:
          ValueError: no context, or one with another number of rows.
        """
        if context is None or context.keys.shape[0] != batch_size:
            raise ValueError(
                "the state of a pointer network holds a source with as many rows: "
                "model.init_state(batch_size, context=model.encode(points, mask), context_mask=mask)"
            )
        return PointerState(context.states, context.words, context.keys, _with_end(context_mask))

    def extend(
        self, tokens: jax.Array, state: PointerState, mask: jax.Array | None = None
    ) -> tuple[jax.Array, PointerState]:
        """Reads new positions (batch, new); returns the logits (batch, new, n + 1) of the next ones, and the state.

        Raises:
          ValueError: a position without a point.
        """
        _check(tokens, state.words.shape[1] - 1)
        x = jnp.take_along_axis(state.words, tokens[..., None], 1)
        x, states = self.decoder.blocks.extend(x, state.states, Tokens(mask))
        logits = self.pointer(x, state.keys, state.mask)
        if self.positions is not None:
            found = jax.nn.softmax(logits, -1).astype(x.dtype) @ finite_padding(state.keys, state.mask)
            logits = self.positions(jnp.concatenate([found, x], -1))[..., : state.keys.shape[1]]
            logits = logits if state.mask is None else jnp.where(state.mask[:, None], logits, -jnp.inf)
        return logits.astype(x.dtype), dataclasses.replace(state, states=states)

    def features(
        self,
        source: jax.Array,
        indices: Sequence[int] | None = None,
        source_mask: jax.Array | None = None,
    ) -> list[jax.Array]:
        """Outputs (batch, n + 1, features) of some layers of the encoder, by default the last of each quarter of the
        depth; index 0 of the second axis is the end's.
        """
        indices = last_of_quarters(self.config.depth) if indices is None else indices
        x = self._words(source, source_mask)[1]
        return self.encoder.blocks(x, Tokens(_with_end(source_mask)), capture=indices)[1]

    def depth_of(self, path: list[str]) -> int:
        if path[0] in ("encoder", "decoder"):
            return int(path[2]) + 1 + (self.config.depth if path[0] == "decoder" else 0)
        return 0 if path[0] in self.stem else 2 * self.config.depth + 1


def _with_end(mask: jax.Array | None) -> jax.Array | None:
    """The mask of the end and the points."""
    return None if mask is None else jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)


def _check(positions: jax.Array, points: int) -> None:
    """Refuses positions without a point, unless they are traced.

    Raises:
      ValueError: such a position.
    """
    if isinstance(positions, jax.core.Tracer):
        return
    wrong = positions[(positions < 0) | (positions > points)]
    if wrong.size:
        raise ValueError(
            f"the target points at {int(wrong[0])}, and the source has {points} points: positions are 1 to {points}, "
            f"and {END} is the end"
        )


VARIANTS: dict[str, dict[str, Any]] = {
    "pointer_network_nano": {"features": 128},
    "pointer_network_256": {},
    "pointer_network_512": {"features": 512},
}

register_family(
    "pointer_network", PointerNetwork, PointerNetworkConfig, VARIANTS, our_choice=tuple(VARIANTS), paper=(80,)
)
