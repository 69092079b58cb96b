"""LSG attention: LSG Attention: Extrapolation of pretrained Transformers to long sequences (Condevaux and Harispe,
2022, arXiv:2210.15497), section 3.

After the global tokens, the sequence is divided into blocks. The tokens of block t attend, in one softmax, to

    global tokens;    blocks t - 1, t, t + 1;    the nearest ``sparse_block`` sparse tokens on each side of these

and global tokens attend to all. Each sparse token stands for f tokens, per head: the tokens whose keys have the largest
norm in each block ("norm"), means of f tokens ("pooling"), means weighted by the attention of the first token
("first"), every f-th token, with another offset in each head ("stride"), or another run of consecutive tokens of each
block in each head ("block_stride").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from layers.attention.projected import HeadOptions, ProjectedAttention
from layers.mixer import register_mixer
from layers.tokens import Tokens
from pallas_kernels import attention

Sparsity = Literal["norm", "pooling", "first", "stride", "block_stride", "none"]
KINDS = ("norm", "pooling", "first", "stride", "block_stride", "none")


@register_mixer("lsg_attention")
class LSGAttention(ProjectedAttention):
    """Softmax attention to local, sparse and global tokens, in time linear in the length. Weights of models with full
    attention can be used without retraining.

    Sequences of at most two blocks use full attention. It is bidirectional only: sparse tokens of later blocks are
    visible, and the authors' causal form generates with full attention. The authors' sparse tokens from LSH clusters
    are not included, because they sample new hashes at each call.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear).
    """

    paper = (117,)
    weighs_values = True
    refusals: ClassVar[Mapping[str, str]] = {
        "positions": "its blocks count places in the sequence: leave positions out"
    }

    def __init__(
        self,
        features: int,
        *,
        num_global: int = 1,
        block: int = 128,
        sparse_block: int | None = None,
        factor: int = 2,
        sparsity: Sparsity = "norm",
        head_dim: int | None = None,
        **options: Unpack[HeadOptions],
    ):
        """Args:
          num_global: number of global tokens, the first of the sequence, which attend to all and are attended to by
            all.
          block: tokens of a block.
          sparse_block: number of sparse tokens that a block attends to on each side; None for ``block``.
          factor: f, number of tokens per sparse token.
          sparsity: kind of sparse tokens; "none" for none.
          head_dim, options: as in :class:`ProjectedAttention`.

        Raises:
          ValueError: features not divisible by num_heads, an unknown kind, or sizes that are too small or do not divide
            each other.
        """
        sparse_block = block if sparse_block is None else sparse_block
        if sparsity not in KINDS or num_global < 0 or min(block, sparse_block, factor) < 1:
            raise ValueError(
                f"sparsity is one of {', '.join(KINDS)}, sizes are at least 1 and num_global at least 0; got "
                f"{sparsity!r}, {block}, {sparse_block}, {factor} and {num_global}"
            )
        part = min(block, sparse_block)
        if part % factor or block % part or sparse_block % (part // factor):
            raise ValueError(
                f"factor={factor} must divide block={block} and sparse_block={sparse_block}, and a block be whole "
                f"sparse blocks: give powers of 2"
            )
        super().__init__(features, head_dim=head_dim, **options)
        self.num_global, self.block, self.sparse_block = num_global, block, sparse_block
        self.factor, self.sparsity = factor, sparsity

    @property
    def complexity(self) -> float:
        return 1.0

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        (batch, length), block, first = x.shape[:2], self.block, self.num_global
        real = jnp.ones((1, length), bool) if tokens.mask is None else tokens.mask
        if length - first <= 2 * block:
            return attention(q, k, v, mask=real[:, None, None])
        count = -(-(length - first) // block)
        own, keys, values, there = (
            jnp.pad(a[:, first:], ((0, 0), (0, count * block - a.shape[1] + first), *[(0, 0)] * (a.ndim - 2)))
            for a in (q, k, v, jnp.broadcast_to(real, (batch, length)))
        )
        of_heads = jnp.swapaxes(there[..., None], 1, 2)
        seen: list[tuple[jax.Array, ...]] = [(_near(keys, block), _near(values, block), _near(there[..., None], block))]
        if self.sparsity != "none":
            made = self._sparse(own, keys, values, of_heads)
            seen.append(tuple(self._far(a, count) for a in made))
        if first:
            given = (k, v, jnp.broadcast_to(real, (batch, length))[..., None])
            seen.append(tuple(jnp.broadcast_to(a[:, None, :first], (batch, count, first, *a.shape[2:])) for a in given))
        heads = max(part[2].shape[-1] for part in seen)
        mask = jnp.concatenate([jnp.broadcast_to(m, (*m.shape[:-1], heads)) for _, _, m in seen], 2)
        near_k, near_v = (
            jnp.concatenate([part[i] for part in seen], 2).reshape(batch * count, -1, *k.shape[2:]) for i in (0, 1)
        )
        mask = jnp.swapaxes(mask.reshape(batch * count, -1, heads), 1, 2)[:, :, None]
        y = attention(own.reshape(batch * count, block, *q.shape[2:]), near_k, near_v, mask=mask)
        y = y.reshape(batch, -1, *y.shape[2:])[:, : length - first]
        return jnp.concatenate([attention(q[:, :first], k, v, mask=real[:, None, None]), y], 1) if first else y

    def _sparse(
        self, q: jax.Array, k: jax.Array, v: jax.Array, real: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Keys and values of sparse tokens, (batch, length / factor, heads, head_dim), and which are real, (batch,
        length / factor, heads or 1); ``real`` is (batch, 1, length).
        """
        (batch, length, heads, width), factor = k.shape, self.factor
        if self.sparsity in ("pooling", "first"):
            groups = jnp.swapaxes(real, 1, 2).reshape(batch, -1, factor, 1)
            keys, values = (a.reshape(batch, -1, factor, heads, width) for a in (k, v))
            wide = jnp.promote_types(k.dtype, jnp.float32)
            if self.sparsity == "first":
                logits = jnp.einsum("bhd,bgfhd->bgfh", q[:, 0].astype(wide), keys.astype(wide)) * width**-0.5
            else:
                logits = jnp.zeros((1, 1, factor, 1), wide)
            share = jax.nn.softmax(jnp.where(groups, logits, jnp.finfo(wide).min), 2)
            found = (
                jnp.einsum("bgfh,bgfhd->bghd", jnp.broadcast_to(share, keys.shape[:4]), a.astype(wide))
                for a in (keys, values)
            )
            keys, values = (a.astype(k.dtype) for a in found)
            return keys, values, groups.any(2)
        if self.sparsity == "norm":
            part = min(self.block, self.sparse_block)
            norm = jnp.linalg.norm(jax.lax.stop_gradient(k).astype(jnp.float32), axis=-1)
            norm = jnp.where(real, jnp.swapaxes(norm, 1, 2), -1).reshape(batch, heads, -1, part)
            chosen = jax.lax.top_k(norm, part // factor)[1] + np.arange(0, length, part)[:, None]
            index = jnp.swapaxes(chosen.reshape(batch, heads, -1), 1, 2)
        else:
            index = jnp.asarray(self._strides(length, heads))[None]
        index = jnp.broadcast_to(index, (batch, *index.shape[1:]))
        keys, values = (jnp.take_along_axis(a, index[..., None], 1) for a in (k, v))
        return keys, values, jnp.take_along_axis(jnp.swapaxes(real, 1, 2), index, 1)

    def _strides(self, length: int, heads: int) -> np.ndarray:
        """Positions of sparse tokens that do not depend on keys: (length / factor, heads) int32."""
        factor, block, head = self.factor, self.block, np.arange(heads, dtype=np.int32)
        if self.sparsity == "stride":
            return np.arange(0, length, factor, dtype=np.int32)[:, None] + head % factor
        run = np.arange(block // factor, dtype=np.int32)[:, None] + head * (block // factor)
        starts = np.arange(0, length, block, dtype=np.int32)
        return (starts[:, None, None] + run % block).reshape(-1, heads)

    def _far(self, a: jax.Array, count: int) -> jax.Array:
        """Selects the sparse tokens before and after the neighbors of each block: (batch, all, ...) to (batch, count, 2
        * sparse_block, ...); zeros, which are masked, beyond the ends.
        """
        step, most = self.block // self.factor, self.sparse_block
        before = (np.arange(count)[:, None] - 1) * step - most + np.arange(most)
        after = (np.arange(count)[:, None] + 2) * step + np.arange(most)
        places = np.concatenate([before, after], 1)
        beyond = np.where((places >= 0) & (places < a.shape[1]), places, a.shape[1])
        return jnp.take(a, jnp.asarray(beyond), axis=1, mode="fill", fill_value=0)


def _near(a: jax.Array, block: int) -> jax.Array:
    """Each block with its neighbors: (batch, length, ...) to (batch, blocks, 3 * block, ...), zeros beyond the ends."""
    blocks = a.reshape(a.shape[0], -1, block, *a.shape[2:])
    padded = jnp.pad(blocks, ((0, 0), (1, 1), *[(0, 0)] * (blocks.ndim - 2)))
    return jnp.concatenate([padded[:, :-2], blocks, padded[:, 2:]], 2)
