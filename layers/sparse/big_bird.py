"""BigBird: Big Bird, Transformers for Longer Sequences (Zaheer et al., NeurIPS 2020, arXiv:2007.14062), in its internal
construction (ITC), which adds no global tokens.

The sequence is divided into blocks. Tokens of the first and of the last block attend to all tokens and are attended to
by all; tokens of block i attend, in one softmax, to the blocks

    0, i - 1, i, i + 1, last, and a few random others
"""

from __future__ import annotations

from typing import Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from layers.attention.projected import HeadOptions, ProjectedAttention
from layers.mixer import register_mixer
from layers.norm import Norm
from layers.tokens import Tokens
from pallas_kernels import attention


@register_mixer("bigbird")
class BigBirdAttention(ProjectedAttention):
    """Softmax attention to neighboring, first, last and random blocks, in time linear in the length.

    The last block of a row is that of its last real token, and random blocks are sampled per head from the blocks
    before it: padding changes nothing. Sequences of at most (5 + 2 * random) blocks use full attention, as in
    transformers' models.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), and ``query_norm``, ``key_norm`` if enabled.
    """

    paper = (166,)
    weighs_values = True

    def __init__(
        self,
        features: int,
        *,
        num_kv_heads: int | None = None,
        block: int = 64,
        random: int = 3,
        choice: Literal["random", "first"] = "random",
        seed: int = 0,
        qk_norm: Norm | None = None,
        **options: Unpack[HeadOptions],
    ):
        """Args:
          block: tokens of a block.
          random: number of random blocks that each block attends to in addition to those of the pattern.
          choice: "random", or "first", which reproduces transformers' models in evaluation, released ones included:
            there all random blocks are the first block, which thus counts 1 + random times.
          seed: seed of the random blocks; layers with the same seed share them.
          num_kv_heads, qk_norm, options: as in :class:`ProjectedAttention`.

        Raises:
          ValueError: features not divisible by num_heads, a block below 1, negative ``random``, or an unknown choice.
        """
        if block < 1 or random < 0 or choice not in ("random", "first"):
            raise ValueError(
                f'block is at least 1, random at least 0 and choice "random" or "first", got {block}, {random} and '
                f"{choice!r}"
            )
        super().__init__(features, num_kv_heads=num_kv_heads, qk_norm=qk_norm, **options)
        self.block, self.random, self.choice, self.seed = block, random, choice, seed

    @property
    def complexity(self) -> float:
        return 1.0

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        (batch, length), mask = x.shape[:2], tokens.mask
        if length <= (5 + 2 * self.random) * self.block:
            return attention(q, k, v, mask=None if mask is None else mask[:, None, None])
        count = -(-length // self.block)
        real = jnp.ones((1, length), bool) if mask is None else mask
        last = jnp.maximum(real.sum(1, dtype=jnp.int32) - 1, 0) // self.block
        q, k, v, real = (
            jnp.pad(a, ((0, 0), (0, count * self.block - length), *[(0, 0)] * (a.ndim - 2))) for a in (q, k, v, real)
        )
        seen = None if real.shape[0] == 1 and count * self.block == length else real[:, None, None]
        bias = None
        if self.choice == "first":
            bias = jnp.where(jnp.arange(count * self.block) < self.block, np.log(1 + self.random), 0)[None, None, None]
        routes = self.routes(count, last)
        y = attention(q, k, v, mask=seen, bias=bias, routes=routes, key_regions=count)
        # The first and the last block of each row attend to all tokens.
        ends, rows = jnp.stack([jnp.zeros_like(last), last], 1), jnp.arange(batch)[:, None]
        y, q = (a.reshape(batch, count, self.block, *a.shape[2:]) for a in (y, q))
        theirs = attention(q[rows, ends].reshape(batch, -1, *q.shape[3:]), k, v, mask=seen)
        y = y.at[rows, ends].set(theirs.reshape(batch, 2, *y.shape[2:]))
        return y.reshape(batch, -1, *y.shape[3:])[:, :length]

    def routes(self, count: int, last: jax.Array) -> jax.Array:
        """The blocks that each block attends to, -1 for none: int32 (rows, heads or 1, count, 5 + random).

        Args:
          count: number of blocks.
          last: (rows,), the last block of each row.
        """
        i, last = jnp.arange(count, dtype=jnp.int32)[:, None], last[:, None, None, None]
        near = i + jnp.arange(-1, 2, dtype=jnp.int32)
        # Blocks that another part of the pattern contains are removed.
        near = jnp.where((near > 0) & (near < last), near, -1)
        ends = jnp.concatenate([jnp.zeros_like(last), jnp.where(last > 0, last, -1)], 3)
        parts = [near, jnp.broadcast_to(ends, (*ends.shape[:2], count, 2))]
        if self.random and self.choice == "random":
            parts.append(self._drawn(count, last[..., 0]))
        shape = np.broadcast_shapes(*((*part.shape[:-1], 1) for part in parts))[:-1]
        return jnp.concatenate([jnp.broadcast_to(part, (*shape, part.shape[-1])) for part in parts], 3)

    def _drawn(self, count: int, last: jax.Array) -> jax.Array:
        """Random blocks outside the pattern (rows, heads, count, random), -1 if there are too few.

        Floyd's sampling algorithm, with random numbers per block that do not depend on the number of blocks.
        """
        numbers = np.random.default_rng(self.seed).random((count, self.random, self.num_heads), np.float32).T
        i = jnp.arange(count, dtype=jnp.int32)
        before = jnp.maximum(i - 1, 1)
        near = jnp.maximum(jnp.minimum(i + 1, last - 1) - before + 1, 0)
        others = jnp.maximum(last - 1, 0) - near
        chosen: list[jax.Array] = []
        for turn in range(self.random):
            most = others - self.random + turn
            drawn = jnp.floor(numbers[:, turn] * (most + 1)).astype(jnp.int32)
            taken = jnp.zeros(drawn.shape, bool)
            for other in chosen:
                taken |= drawn == other
            chosen.append(jnp.where(most < 0, -1, jnp.where(taken, most, drawn)))
        found = jnp.stack(chosen, -1)
        # Skip the first block and the neighbors.
        places = found + 1 + jnp.where(found + 1 >= before[:, None], near[..., None], 0)
        return jnp.where(found < 0, -1, places)
