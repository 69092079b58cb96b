"""Predicted sparse attention: Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision
Transformers (Wei et al., CVPR 2023, arXiv:2303.13755), section 3.2.

    C = softmax(D_q(q) (P_1^T D_k(k))^T / sqrt(heads))        similarity of each query to r mixtures of all keys
    S = top(C) |P_2|^T                                        scores of all keys, mapped back from the mixtures
    y = softmax(q k^T / sqrt(head_dim) where S is among the largest) v

D_q and D_k halve the features of a head, P_1 and P_2 (tokens, r) are learned tables, and only the largest coefficients
of C and the entries of |P_2| above a threshold count. The logits of C are scaled by the number of heads, not by the
head size, as in the authors' code. Prefix tokens, such as the class token, see all tokens. No gradient flows through
the selection: the predictor learns from an auxiliary loss, "attention_reconstruction", the mean over images and heads
of the squared distance between C P_2^T and the weights of dense attention (the authors sum over both). In the authors'
first epochs all tokens attend to all: ``keep=1``.

As baselines, each token can see the same number of nearest tokens in the map, or of tokens sampled once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from layers.attention.projected import HeadOptions, ProjectedAttention, of_projections
from layers.initializers import truncated_normal
from layers.linear import Linear
from layers.mixer import register_mixer
from layers.module import AuxLoss, Constant, Diagnostic, parameter
from layers.position import resample_table
from layers.tokens import Tokens, grid_positions
from pallas_kernels import attention, attention_weights


@register_mixer("predicted_sparse_attention")
class PredictedSparseAttention(ProjectedAttention):
    """Softmax attention of each token to those with the highest weights in a predicted low-rank attention map.

    All predicted scores are held at once: memory is quadratic in the length. For other grids the tables are resampled,
    which is our choice (the authors' models support one size).

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), ``query_down``, ``key_down`` (linear, per head),
    ``mixtures`` (tokens, r) for P_1, ``basis`` (tokens, r) for P_2; the baselines have none of these four. The
    diagnostic "connections" is bool (batch or 1, heads or 1, tokens of the grid, tokens): which tokens each one sees.
    """

    layouts = ("grid", "image")
    honors = frozenset({"mask"})
    paper = (222,)
    undecayed = ("mixtures", "basis")
    aux_losses: ClassVar[Mapping[str, float]] = {"attention_reconstruction": 0.01}

    def __init__(
        self,
        features: int,
        *,
        grid: tuple[int, int] = (14, 14),
        prefix: int = 0,
        index: int = 0,
        keep: float = 0.25,
        tokens_per_mixture: int = 6,
        coefficients: int = 8,
        threshold: float = 0.02,
        connections: Literal["predicted", "nearest", "random"] = "predicted",
        **options: Unpack[HeadOptions],
    ):
        """Args:
          grid, prefix: rows and columns of the grid, and number of prefix tokens, for which the tables are created.
          index: index of the block, which seeds its random connections.
          keep: fraction of the tokens that each token sees, rounded up; 1 is dense attention.
          tokens_per_mixture: tokens / r, rounded down.
          coefficients: number of the largest coefficients of C that count.
          threshold: entries of \\|P_2\\| up to it are set to 0.
          connections: "predicted", or a baseline that measures its benefit: "nearest" selects the tokens at the
            smallest Euclidean distance (prefix tokens count as distance 0); "random" tokens are sampled, the same for
            all images and heads.
          options: as in :class:`ProjectedAttention`.

        Raises:
          ValueError: features not divisible by num_heads, ``keep`` outside (0, 1], fewer tokens than
            ``tokens_per_mixture``, or unknown connections.
        """
        if connections not in ("predicted", "nearest", "random"):
            raise ValueError(f'connections is "predicted", "nearest" or "random", got {connections!r}')
        if not 0 < keep <= 1:
            raise ValueError(f"keep is a fraction of the tokens, above 0 and at most 1, got {keep}")
        super().__init__(features, **options)
        count = grid[0] * grid[1] + prefix
        if count < tokens_per_mixture:
            raise ValueError(f"{count} tokens make no mixture of {tokens_per_mixture}: give fewer tokens_per_mixture")
        if connections == "predicted":
            made, width = of_projections(options), self.head_dim // 2
            self.query_down, self.key_down = Linear(self.head_dim, width, **made), Linear(self.head_dim, width, **made)
            shape = (count, count // tokens_per_mixture)
            self.mixtures, self.basis = (parameter(truncated_normal(0.02), shape, options) for _ in range(2))
        # An array, so that all blocks of a stack share one compiled program.
        self.seed = Constant(jnp.asarray(index)) if connections == "random" else None
        self.connections = connections
        self.grid, self.prefix, self.keep = tuple(grid), prefix, keep
        self.coefficients, self.threshold = coefficients, threshold

    @property
    def complexity(self) -> float:
        return 2.0

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        seen = None if tokens.mask is None else tokens.mask[:, None, None]
        mask = seen if (chosen := self._connected(q, k, tokens, seen)) is None else chosen
        if self.sowing(Diagnostic, "attention"):
            self.sow(Diagnostic, "attention", attention_weights(q, k, mask=mask))
        return attention(q, k, v, mask=mask)

    def _connected(self, q: jax.Array, k: jax.Array, tokens: Tokens, seen: jax.Array | None) -> jax.Array | None:
        """Bool (batch or 1, heads or 1, tokens, tokens): which tokens each one sees; None for all."""
        grid, prefix = tokens.image(q.shape[1])
        predicts = self.connections == "predicted"
        learning = predicts and self.sowing(AuxLoss, "attention_reconstruction")
        if predicts and (learning or self.keep < 1):
            likeness, basis = self._likeness(q, k, tokens, prefix), self._table(self.basis, grid, prefix)
            if learning:
                weights = jax.lax.stop_gradient(attention_weights(q, k, mask=seen))[:, :, prefix:]
                squares = jnp.square(jnp.einsum("bhnr,mr->bhnm", likeness, basis) - weights)
                if tokens.mask is not None and seen is not None:
                    squares = jnp.where(seen & tokens.mask[:, None, prefix:, None], squares, 0)
                self.sow(AuxLoss, "attention_reconstruction", jnp.sum(squares) / len(q) / self.num_heads)
        if self.keep == 1:
            return None
        scores = self._scores(likeness, basis) if predicts else self._control(grid, prefix)
        scores = scores if seen is None else jnp.where(seen, scores, -1)
        chosen = _largest(scores, math.ceil(self.keep * scores.shape[-1]))
        if self.sowing(Diagnostic, "connections"):
            self.sow(Diagnostic, "connections", chosen)
        everything = jnp.ones((*chosen.shape[:2], prefix, chosen.shape[3]), bool)
        chosen = jnp.concatenate([everything, chosen], 2)
        return chosen if seen is None else chosen & seen

    def _likeness(self, q: jax.Array, k: jax.Array, tokens: Tokens, prefix: int) -> jax.Array:
        """C, float32 (batch, heads, tokens of the grid, r)."""
        wide = jnp.promote_types(q.dtype, jnp.float32)
        keys = self.key_down(k)
        if tokens.mask is not None:
            keys = jnp.where(tokens.mask[..., None, None], keys, 0)
        table = self._table(self.mixtures, tokens.image(q.shape[1])[0], prefix)
        mixed = jnp.einsum("bnhc,nr->bhrc", keys.astype(wide), table)
        logits = jnp.einsum("bnhc,bhrc->bhnr", self.query_down(q)[:, prefix:].astype(wide), mixed)
        return jax.nn.softmax(logits * self.num_heads**-0.5, -1)

    def _scores(self, likeness: jax.Array, basis: jax.Array) -> jax.Array:
        """S, (batch, heads, tokens of the grid, tokens), non-negative."""
        likeness, basis = jax.lax.stop_gradient((likeness, jnp.abs(basis)))
        basis = jnp.where(basis > self.threshold, basis, 0)
        if self.coefficients < likeness.shape[-1]:
            likeness = jnp.where(_largest(likeness, self.coefficients), likeness, 0)
        return jnp.einsum("bhnr,mr->bhnm", likeness, basis)

    def _control(self, grid: tuple[int, int], prefix: int) -> jax.Array:
        """Positive scores (1, 1, tokens of the grid, tokens) of the baselines."""
        count = grid[0] * grid[1]
        if self.seed is not None:
            return 1 + jax.random.uniform(jax.random.key(self.seed[...]), (1, 1, count, prefix + count))
        places = jnp.asarray(grid_positions(*grid), jnp.float32)
        squares = jnp.pad(jnp.square(places[:, None] - places).sum(-1), ((0, 0), (prefix, 0)))
        return (1 / (1 + squares))[None, None]

    def _table(self, table: nnx.Param, grid: tuple[int, int], prefix: int) -> jax.Array:
        """A table resampled to (prefix + rows * columns, r), in float32, with 0 for prefix tokens without a row."""
        wide = table[...].astype(jnp.promote_types(table.dtype, jnp.float32))
        cells = resample_table(wide[self.prefix :].reshape(*self.grid, -1), grid).reshape(-1, wide.shape[1])
        own = wide[: min(self.prefix, prefix)]
        return jnp.concatenate([own, jnp.zeros((prefix - len(own), wide.shape[1]), wide.dtype), cells])


def _largest(x: jax.Array, count: int) -> jax.Array:
    """Bool, True at the ``count`` largest entries of the last axis, ties broken by order."""
    order = _ordered(x)
    least = _least_of_largest(order, count)
    above, equal = order > least, order == least
    room = count - above.sum(-1, keepdims=True, dtype=jnp.int32)

    def first_equal() -> jax.Array:
        return equal & (jnp.cumsum(equal, -1, dtype=jnp.int32) <= room)

    # Ties at the threshold are rare, and a cumulative sum is not cheap.
    tied = jnp.any(equal.sum(-1, keepdims=True, dtype=jnp.int32) > room)
    return above | jax.lax.cond(tied, first_equal, lambda: equal)


def _ordered(x: jax.Array) -> jax.Array:
    """Integers in the order of the numbers ``x``, equal where those are."""
    bits = jax.lax.bitcast_convert_type(x + 0.0, jnp.int64 if x.dtype.itemsize == 8 else jnp.int32)  # -0.0 becomes 0.0
    return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)


def _least_of_largest(order: jax.Array, count: int) -> jax.Array:
    """The least of the ``count`` largest integers of the last axis, which is kept.

    Found bit by bit from the highest: each bit compares all entries once, which on a CPU takes a small part of the time
    of sorting them.
    """
    info = jnp.iinfo(order.dtype)

    def enough(least: jax.Array) -> jax.Array:
        return (order >= least).sum(-1, keepdims=True, dtype=jnp.int32) >= count

    def bit(i: jax.Array, least: jax.Array) -> jax.Array:
        more = least + jax.lax.shift_left(jnp.ones((), order.dtype), (info.bits - 2 - i).astype(order.dtype))
        return jnp.where(enough(more), more, least)

    zero = jnp.zeros((*order.shape[:-1], 1), order.dtype)
    return jax.lax.fori_loop(0, info.bits - 1, bit, jnp.where(enough(zero), zero, info.min))
