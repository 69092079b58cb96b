"""Block-Recurrent Transformers (Hutchins et al., NeurIPS 2022, arXiv:2203.07852).

    x = 16 word;  N x [x = x + Attention(RMSNorm(x));  x = x + W_2 relu(W_1 RMSNorm(x))];  logits = words RMSNorm(x)

Each token attends to the W tokens before it, with queries and keys of unit length, learned scales and T5's relative
position buckets; the third layer from the end also attends to a recurrent state
(:mod:`layers.attention.block_recurrent`).

Among the authors' configurations (google-research/meliad), 12 layers of 1024 features have 151M parameters, not
counting the embedding and those of the recurrent state; with MLPs and heads of twice the size, 302M. According to the
abstract they outperform a long-range Transformer-XL and run twice as fast.

With ``feedback`` (the authors' Block Feedback) all other layers attend to the recurrent state too, with queries of
their own (:mod:`layers.attention.state_reader`): to the state of the last recurrent layer, as the previous window left
it. A lower layer then depends on what a higher one has read before, so that a text goes through all layers window by
window, in one loop.

The factor 16 is the square root of 256, the number of byte values: a token does not attend to itself, and its embedding
must not be drowned out by what attention adds to the residual stream. (The authors divide the logits by it instead, and
their embeddings start with a standard deviation of 1, not 1 / 16.) Differences: the other layers add the relative
position bias to the scaled scores, and start without a window of zeros. The size of
``block_recurrent_transformer_nano`` is our choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from layers.attention.block_recurrent import BlockRecurrentAttention, Cell, Gate
from layers.attention.state_reader import StateReader
from layers.block import Branch
from layers.mixer import MixerSpec, Place
from layers.module import collecting
from layers.segmented import Piece, Step, read_on, read_whole
from layers.tokens import Tokens
from pallas_kernels import masks
from zoo.backbones.causal import Causal, CausalConfig, CausalState, Mlp
from zoo.backbones.model import mixers
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class BlockRecurrentTransformerConfig(CausalConfig):
    """Hyper-parameters of the Block-Recurrent Transformer.

    Attributes:
      head_dim: features of each head; None is features / num_heads.
      window, states: W, and the number of vectors in the recurrent state.
      gate, cell: the kind of the state's gate, "fixed" or "lstm", and of its cell, "skip", "dual" or "single".
      recurrent_layers: indices of the layers with a recurrent state; negative ones count from the end.
      feedback: whether the other layers attend to the state of the last recurrent layer.
    """

    features: int = 1024
    num_heads: int = 8
    mlp: Mlp | None = "relu"
    norm_epsilon: float = 1e-6
    embedding_std: float = 1 / 16
    embedding_scale: float | Literal["sqrt"] = 16.0
    head_dim: int | None = None
    window: int = 512
    states: int = 512
    gate: Gate = "fixed"
    cell: Cell = "skip"
    recurrent_layers: tuple[int, ...] = (-3,)
    feedback: bool = False


class BlockRecurrentTransformer(Causal):
    """The Block-Recurrent Transformer; names as in :class:`Causal`, and ``blocks.N.feedback`` in layers that attend to
    another layer's state.
    """

    config: BlockRecurrentTransformerConfig

    def __init__(self, config: BlockRecurrentTransformerConfig, *, rngs: nnx.Rngs):
        """Raises:
        ValueError: feedback without a recurrent layer, or with random choices or losses inside its layers.
        """
        super().__init__(config, rngs=rngs)
        if not config.feedback:
            return
        if not self._recurrent:
            raise ValueError(
                "feedback=True: no layer keeps a state that the others could read; leave recurrent_layers and the "
                "mixers of these layers as they are, or feedback out"
            )
        whole = {"dropout": config.dropout, "drop_path": config.drop_path, "randomized": config.randomized is not None}
        named = config.mlp if isinstance(config.mlp, str) or config.mlp is None else config.mlp.get("name")
        whole["experts"] = named == "experts" or config.mlp_pattern is not None
        if asked := [name for name, value in whole.items() if value]:
            raise ValueError(
                f"feedback=True reads a text window by window in one loop, which supports no random choices and no "
                f"losses of its layers: leave {asked[0]} out"
            )

    @property
    def _recurrent(self) -> list[int]:
        """The layers that keep a state."""
        return [i for i, block in enumerate(self.blocks) if isinstance(block.mixer, BlockRecurrentAttention)]

    def make_branches(self, place: Place, *, rngs: nnx.Rngs) -> dict[str, nnx.Module | Branch]:
        branches = super().make_branches(place, rngs=rngs)
        mixer = branches.pop("mixer")
        if not self.config.feedback or isinstance(mixer, BlockRecurrentAttention):
            return {"mixer": mixer, **branches}
        c = self.config
        heads: dict[str, Any] = {"num_heads": c.num_heads, "head_dim": c.head_dim or c.features // c.num_heads}
        reader = StateReader(c.features, **heads, **place.dtypes, rngs=rngs)
        # Part of the mixer's branch: same input, and the two outputs are added.
        return {"mixer": mixer, "feedback": Branch(reader, norm=None, order="parallel"), **branches}

    def through(
        self, x: jax.Array, known: Tokens, capture: Sequence[int] = ()
    ) -> tuple[jax.Array, Sequence[jax.Array]]:
        if not self.config.feedback:
            return super().through(x, known, capture)
        for mixer in mixers(self.blocks):
            if isinstance(mixer, StateReader):  # it gets one window at a time, of one document
                continue
            mixer.checked(known)
            mixer.check_aligned(known.segment_ids)
        empty = self.blocks.init_state(x.shape[0], x.shape[1], x.dtype)
        step = self._step(empty, [i % len(self.blocks) for i in capture])
        x, *found = read_whole(step, empty, (x,), known, self.config.window)[0]
        return x, found

    def through_next(self, x: jax.Array, known: Tokens, state: CausalState, places: jax.Array) -> tuple[jax.Array, Any]:
        if not self.config.feedback:
            return super().through_next(x, known, state, places)
        empty = None if known.segment_ids is None else self.blocks.init_state(x.shape[0], dtype=x.dtype)
        where = {"positions": places, "document": state.segment}
        (x,), blocks, _ = read_on(self._step(empty), state.blocks, (x,), known, self.config.window, **where)
        return x, blocks

    def _step(self, empty: Any, capture: Sequence[int] = ()) -> Step:
        """How all layers read some tokens of one window.

        Args:
          empty: their states before a document; None where none begins.
        """
        layer = self._recurrent[-1]

        def step(blocks: tuple[Any, ...], piece: Piece) -> tuple[Any, Any, tuple[()]]:
            if (fresh := piece.fresh) is not None:
                blocks = jax.tree.map(
                    lambda new, old: jnp.where(fresh.reshape(-1, *(1,) * (new.ndim - 1)), new.astype(old.dtype), old),
                    empty, blocks,
                )  # fmt: skip
            kept, (x,), known = blocks[layer]["mixer"], piece.arrays, Tokens(piece.real)
            shared = kept.state_key, kept.state_value
            with collecting():  # what is sown in a loop can't leave it
                if not capture:
                    x, blocks, _ = self.blocks.extend(x, blocks, known, shared=shared)
                    return blocks, (x,), ()
                found, new = [], []
                for block, state in zip(self.blocks, blocks, strict=True):
                    x, state, _ = block.extend(x, state, known, shared)
                    found.append(x)
                    new.append(state)
            return tuple(new), (x, *(found[i] for i in capture)), ()

        return step

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        if place.index in {layer % c.depth for layer in c.recurrent_layers}:
            return {
                "name": "block_recurrent_attention", "head_dim": c.head_dim, "window": c.window, "states": c.states,
                "gate": c.gate, "cell": c.cell, "hidden": c.hidden,
            }  # fmt: skip
        return {
            "name": "attention", "head_dim": c.head_dim, "window": c.window + 1,
            "visible": masks.window(c.window, -1), "relative": "buckets", "qk_norm": "unit", "logit_scale": 1.0,
            "use_bias": False,
        }  # fmt: skip


VARIANTS: dict[str, dict[str, Any]] = {
    "block_recurrent_transformer_nano": {"features": 128, "depth": 4, "num_heads": 4, "window": 64, "states": 32},
    "block_recurrent_transformer_151m": {},
    "block_recurrent_transformer_302m": {"num_heads": 16, "head_dim": 128, "hidden": 8192},
}

register_family(
    "block_recurrent_transformer",
    BlockRecurrentTransformer,
    BlockRecurrentTransformerConfig,
    VARIANTS,
    our_choice=("block_recurrent_transformer_nano",),
    paper=(122,),
)
