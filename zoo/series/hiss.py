"""HiSS: Hierarchical State Space Models for Continuous Sequence-to-Sequence Modeling (Bhirangi et al., ICML 2024,
arXiv:2402.10211), section 4.

    low    z_k = the last output of  W_d norm(N_l x [h = h + Mixer(norm(h))])  of  h = W_e x  in chunk k alone
    high   y_k = W_o norm(N_h x [h = h + Mixer(norm(h))])  of  h = z_1, ..., z_k

A sensor gives c readings for each output. The low level reads each chunk of c readings by itself, and the high level
reads the resulting chunk vectors: one output for each chunk, which depends on that chunk and the earlier ones.

The paper's levels are Mamba or S4; it reports a mean squared error 23 % lower than flat models'. Sizes are those of the
authors' configurations, for their data sets; ``hiss_nano`` is our choice. Levels of S4, or of its diagonal form, end
without a norm. ``mixer=`` replaces the mixer of both levels, ``pattern={"0.every": "s4d", "1.every": "mamba"}`` that of
each, 0 being the low one. The flat model that the paper compares with is a low level that carries its state over
chunks, ``carried=True``, with no high level, ``depth=0``. The authors' files of S4 are not read: they hold C (I - A'^L)
in place of C, for the last length L that they were run on (:mod:`layers.state_space.s4`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from layers.linear import Linear
from layers.mixer import Mixer, MixerSpec, Place, create_mixer, finite_padding
from layers.module import Module
from layers.norm import create_norm
from layers.stack import Stack
from layers.tokens import Tokens
from zoo.backbones.model import Model, last_of_quarters
from zoo.naming import Naming
from zoo.registry import ModelConfig, register_family

LOW, HIGH = 0, 1
"""The stages of the two levels."""


@dataclasses.dataclass(frozen=True)
class HiSSConfig(ModelConfig):
    """Hyper-parameters of HiSS.

    Attributes:
      in_features: numbers of a reading; the authors append to the sensor's numbers their change since the previous
        reading.
      outputs: numbers predicted for each chunk.
      ratio: c, readings of a chunk.
      features, depth: of the high level.
      low_features, low_depth: of the low level.
      levels: mixers of the low and of the high level.
      summary: the vector of a chunk: the "last" output of the low level, or the "mean" of its outputs, our addition.
      carried: whether the low level keeps its state from chunk to chunk.
      num_heads: for mixers with heads.
      norm, norm_epsilon: of the blocks and, except for S4 and S4D, at the end of each level.
    """

    in_features: int = 12
    outputs: int = 3
    ratio: int = 10
    features: int = 64
    depth: int = 4
    low_features: int = 32
    low_depth: int = 4
    levels: tuple[MixerSpec, MixerSpec] = ("mamba", "mamba")
    summary: Literal["last", "mean"] = "last"
    carried: bool = False
    num_heads: int = 4
    norm: str = "layer"
    norm_epsilon: float = 1e-5


class LowLevel(Module):
    """Reads chunks. Names: ``embedding``, ``blocks.N``, ``norm``, ``out``."""

    def __init__(self, embedding: Linear, blocks: Stack, norm: Any, out: Linear, ratio: int, mean: bool):
        self.embedding, self.blocks, self.norm, self.out = embedding, blocks, norm, out
        self.ratio, self.mean = ratio, mean

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps the readings of successive chunks, (batch, chunks * ratio, in_features), to one vector for each chunk,
        (batch, chunks, features).
        """
        return self._summed_up(self.blocks(self.embedding(x))[0])

    def extend(self, x: jax.Array, state: Any, mask: jax.Array | None) -> tuple[jax.Array, Any]:
        """As a call, for new chunks after those of ``state``; returns the new state too."""
        y, state = self.blocks.extend(self.embedding(x), state, Tokens(mask))
        return self._summed_up(y), state

    def _summed_up(self, x: jax.Array) -> jax.Array:
        norm: Any = self.norm
        x = x if self.mean else x[:, self.ratio - 1 :: self.ratio]
        y = self.out(x if norm is None else norm(x))
        if not self.mean:
            return y
        y = y.reshape(y.shape[0], -1, self.ratio, y.shape[-1])
        return jnp.mean(y, axis=2, dtype=jnp.promote_types(y.dtype, jnp.float32)).astype(y.dtype)


class HiSS(Model):
    """HiSS. Names: ``low.embedding``, ``low.blocks.N``, ``low.norm``, ``low.out``; ``blocks.N``, ``norm``, ``head``."""

    config: HiSSConfig

    def __init__(self, config: HiSSConfig, *, rngs: nnx.Rngs):
        """Builds the model.

        Raises:
          ValueError: chunks without readings, an unknown summary, or a mixer that is not causal.
        """
        c = self.config = config
        if c.ratio < 1 or c.summary not in ("last", "mean"):
            raise ValueError(
                f'a chunk has at least one reading, and its summary is "last" or "mean": got ratio={c.ratio} and '
                f"summary={c.summary!r}"
            )
        common = {"dtype": c.dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        self.low = LowLevel(
            Linear(c.in_features, c.low_features, **common),
            self.make_stack(LOW, rngs=rngs),
            self.make_end(LOW, rngs=rngs),
            Linear(c.low_features, c.features, **common),
            c.ratio,
            c.summary == "mean",
        )
        self.blocks, self.norm = self.make_stack(HIGH, rngs=rngs), self.make_end(HIGH, rngs=rngs)
        self.num_features = c.features
        self.head = Linear(c.features, c.outputs, **common)

    @property
    def depths(self) -> tuple[int, ...]:
        return self.config.low_depth, self.config.depth

    def place(self, stage: int, index: int) -> Place:
        place = super().place(stage, index)
        return dataclasses.replace(place, features=self.config.low_features) if stage == LOW else place

    def own_mixer(self, place: Place) -> MixerSpec:
        return self.config.levels[place.stage or 0]

    def make_mixer(self, place: Place, *, rngs: nnx.Rngs) -> Mixer:
        return create_mixer(self.mixer_spec(place), self._width(place), causal=True, place=place, rngs=rngs)

    def block_options(self, place: Place) -> dict[str, Any]:
        return {"norm": self.config.norm, "norm_epsilon": self.config.norm_epsilon}

    def make_end(self, stage: int, *, rngs: nnx.Rngs) -> nnx.Module | None:
        """The norm after the blocks of a level; None for none."""
        c = self.config
        if c.levels[stage] in ("s4", "s4d"):
            return None
        width = c.low_features if stage == LOW else c.features
        common = {"dtype": c.dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        return create_norm(c.norm, width, epsilon=c.norm_epsilon, **common)

    def reset_head(self, outputs: int, *, rngs: nnx.Rngs | None = None) -> None:
        """Replaces the head by a fresh one for ``outputs`` numbers of a chunk."""
        c = self.config = dataclasses.replace(self.config, outputs=outputs)
        rngs = nnx.Rngs(0) if rngs is None else rngs
        self.head = Linear(c.features, outputs, dtype=c.dtype, param_dtype=c.param_dtype, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Maps readings to the outputs of each chunk.

        Args:
          x: (batch, length, in_features), whole chunks.
          mask: bool (batch, length), True for real readings; padding trails. A chunk is real if all its readings are.

        Returns:
          (batch, length / ratio, outputs).

        Raises:
          ValueError: readings with another number of features, or an incomplete chunk.
        """
        chunks, known = self._chunks(x, mask)
        return self._finish(self.blocks(chunks, known)[0])

    def features(
        self, x: jax.Array, indices: Sequence[int] | None = None, mask: jax.Array | None = None
    ) -> list[jax.Array]:
        """Outputs (batch, length / ratio, features) of some blocks of the high level, by default the last of each
        quarter.

        Raises:
          ValueError: a high level without blocks.
        """
        if not self.config.depth:
            raise ValueError("a high level of depth=0 has no blocks: a flat model's are those of its low level")
        indices = last_of_quarters(self.config.depth) if indices is None else indices
        chunks, known = self._chunks(x, mask)
        return self.blocks(chunks, known, capture=indices)[1]

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> Any:
        """The state before the first reading: the high level's, or with ``carried`` the pair (low, high).
        ``max_length`` is the number of readings that caches must have room for: as readings on the low level, as chunks
        on the high one.
        """
        room = None if max_length is None else -(-max_length // self.config.ratio)
        high = self.blocks.init_state(batch_size, room, dtype)
        return (self.low.blocks.init_state(batch_size, max_length, dtype), high) if self.config.carried else high

    def extend(self, x: jax.Array, state: Any, mask: jax.Array | None = None) -> tuple[jax.Array, Any]:
        """Reads new chunks (batch, new, in_features); returns (batch, new / ratio, outputs) and the new state.

        Raises:
          ValueError: as for a call. A chunk has no output before its end, so readings must come in whole chunks.
        """
        low, high = state if self.config.carried else (None, state)
        chunks, known, low = self._read(x, mask, low)
        y, high = self.blocks.extend(chunks, high, known)
        return self._finish(y), (low, high) if self.config.carried else high

    def _chunks(self, x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, Tokens]:
        """The vectors of the chunks, (batch, chunks, features), and which of them are real."""
        return self._read(x, mask, None)[:2]

    def _read(self, x: jax.Array, mask: jax.Array | None, state: Any) -> tuple[jax.Array, Tokens, Any]:
        """As :meth:`_chunks`, for chunks after those of the low level's ``state``, and the new state; None if there is
        none."""
        c = self.config
        if x.ndim != 3 or x.shape[-1] != c.in_features:
            raise ValueError(
                f"the model takes readings of {c.in_features} numbers, (batch, length, {c.in_features}), got the shape "
                f"{x.shape}: in_features= is another number"
            )
        if x.shape[1] % c.ratio or not x.shape[1]:
            raise ValueError(
                f"{x.shape[1]} readings are no whole chunks of ratio={c.ratio}: pad them and give a mask, or wait for "
                f"the rest of the chunk"
            )
        x = finite_padding(x, mask)
        known = Tokens(None if mask is None else mask[:, c.ratio - 1 :: c.ratio])
        if state is not None:
            found, state = self.low.extend(x, state, mask)
            return found, known, state
        rows = x if c.carried else x.reshape(-1, c.ratio, c.in_features)
        return self.low(rows).reshape(x.shape[0], -1, c.features), known, None

    def _finish(self, x: jax.Array) -> jax.Array:
        norm: Any = self.norm
        return self.head(x if norm is None else norm(x))

    def depth_of(self, path: list[str]) -> int:
        c = self.config
        if path[0] == "low":
            return int(path[2]) + 1 if path[1] == "blocks" else 0 if path[1] == "embedding" else c.low_depth
        return c.low_depth + (int(path[1]) + 1 if path[0] == "blocks" else c.depth + 1)


_S4: dict[str, Any] = {"low_features": 256, "low_depth": 6, "features": 128, "dropout": 0.1}
VARIANTS: dict[str, dict[str, Any]] = {
    "hiss_nano": {"features": 32, "depth": 2, "low_features": 16, "low_depth": 2},
    "hiss_vector": {},
}
S4_VARIANTS: dict[str, dict[str, Any]] = {
    "hiss_ronin": {**_S4, "depth": 6, "levels": ("s4", "s4")},
    "hiss_marker_writing": {**_S4, "depth": 6, "levels": ("s4", "mamba")},
    "hiss_total_capture": {**_S4, "depth": 4, "levels": ("s4", "mamba")},
    "hiss_intrinsic_slip": {**_S4, "features": 256, "depth": 4, "levels": ("s4", "mamba")},
    "hiss_joystick_control": {**_S4, "low_depth": 4, "features": 256, "depth": 4, "levels": ("s4", "mamba")},
}

# Of the authors' models, for 12 numbers of a reading and 3 outputs.
S4_PARAMETERS = {
    "hiss_ronin": 1_623_299,
    "hiss_marker_writing": 1_926_147,
    "hiss_total_capture": 1_692_675,
    "hiss_intrinsic_slip": 3_012_355,
    "hiss_joystick_control": 2_616_067,
}


def _level(theirs: str, ours: str) -> list[tuple[str, str]]:
    """The blocks of a level of Mamba and its last norm."""
    block, own = f"{theirs}.layers.{{i}}", f"{ours}blocks.{{i}}"
    names = ("in_proj", "x_proj", "dt_proj", "out_proj", "A_log", "D")
    return [
        (f"{block}.norm", f"{own}.mixer_norm"),
        *((f"{block}.mixer.{name}", f"{own}.mixer.{name}") for name in names),
        (f"{block}.mixer.conv1d", f"{own}.mixer.conv"),
        (f"{block}.mixer.dt_proj.bias", f"{own}.mixer.dt_bias"),
        (f"{theirs}.norm_f", f"{ours}norm"),
    ]


RULES = {
    "authors": Naming(
        [
            ("low_level.embed", "low.embedding"),
            *_level("low_level.mamba", "low."),
            ("low_level.decoder", "low.out"),
            *_level("high_level", ""),
            ("output", "head"),
        ],
        ignore=("pos_encoder.pe",),  # of the authors' levels of transformers
    )
}

register_family(
    "hiss",
    HiSS,
    HiSSConfig,
    VARIANTS,
    our_choice=("hiss_nano",),
    parameters={"hiss_vector": 173_923},  # of the authors' model
    rules=RULES,
    paper=(98,),
)
register_family("hiss", HiSS, HiSSConfig, S4_VARIANTS, parameters=S4_PARAMETERS, paper=(98,))
