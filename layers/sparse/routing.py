"""Routing attention: Efficient Content-Based Sparse Attention with Routing Transformers (A. Roy et al., 2020,
arXiv:2003.05997).

Tokens attend within clusters that online k-means finds among their queries and keys. With R the layer norm without
scale and bias, which projects vectors to a sphere, and centroids m_1 .. m_k:

    q_t = R(W_q x_t),   k_t = q_t (causal) or R(W_k x_t),   S_j = the w tokens of largest <q_t, m_j>
    o_t = the mean over the clusters j with t in S_j of softmax(scale <q_t, k_s>, s in S_j) v_s,   0 if there are none
    m_j <- R(decay m_j + (1 - decay) * the mean of the q_t and k_t whose nearest centroid is m_j)

As in the authors' code, the outputs of several clusters are averaged, and the commitment loss is the mean squared
difference between q_t (and k_t, if separate) and its nearest centroid. Their code keeps moving averages of the sum and
the count of members; ours keeps a moving average of the mean and projects it to the sphere, where the nearest centroid
is the one with the largest dot product. A centroid without members in a batch is not moved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx, struct

from layers.drop import Dropout
from layers.initializers import OnSphere, normal, truncated_normal
from layers.linear import Linear
from layers.mixer import Mixer, register_mixer
from layers.module import AuxLoss, Diagnostic, Statistic
from layers.tokens import Tokens, last_segment, numbered
from pallas_kernels import attention, merge
from primitives import sequence


def on_sphere(x: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """Layer norm over the last axis without scale and bias, in float32 (float64 for float64)."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x = x - jnp.mean(x, -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + epsilon)


@struct.dataclass
class RoutingCache:
    """The most recent members of every cluster.

    Attributes:
      key, value: (batch, heads, clusters, window, head_dim); slot = index of the member modulo window.
      count: (batch, heads, clusters) int32, members so far from the row's current document.
      segment: (batch,) int32, id of the document.
    """

    key: jax.Array
    value: jax.Array
    count: jax.Array
    segment: jax.Array


@register_mixer("routing")
class RoutingAttention(Mixer):
    """Attention within clusters of tokens, found by online k-means.

    ``membership="balanced"`` is the paper's: every cluster takes its ``window`` best tokens of the whole sequence, so a
    token may be in none or in several. It streams by "selection": a later token can displace an earlier one from a
    cluster, though a token never attends to a later one. ``membership="causal"`` streams exactly: every token joins
    only its nearest centroid and attends to the last ``window`` members of that cluster, itself included. The
    parameters are the same; ``extend`` always uses causal membership, because past tokens can't leave a cluster.

    Documents of a row do not see each other. With causal membership, the result is that of separate rows. With balanced
    membership, documents compete for the slots of a cluster, like the parts of one long text, so the members from one
    document depend on the others; apart from the choice of members, documents are independent.

    Parameters: ``query``, ``key`` (bidirectional only), ``value``, ``out`` (linear), ``relative``; the statistic
      ``centroids``.
    """

    supports_causal = True
    streaming: Literal["exact", "selection"] = "selection"
    honors = frozenset({"mask", "segment_ids"})
    paper = (35,)
    aux_losses: ClassVar[Mapping[str, float]] = {"commitment": 1e-4}
    undecayed = ("relative",)

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        head_dim: int | None = None,
        causal: bool = False,
        clusters: int = 64,
        window: int | None = None,
        membership: Literal["balanced", "causal"] = "balanced",
        relative: int | None = None,
        decay: float = 0.999,
        scale: float | None = None,
        use_bias: bool = False,
        dropout: float = 0.0,
        kernel_init: Any = truncated_normal(0.02),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          clusters: k, centroids of each head.
          window: w, number of members of a cluster that attend to each other. None means ``clusters`` for causal
            membership, and n / k for balanced membership, where k = sqrt(n) of the ``clusters`` are used (all of them
            from clusters^2 tokens), at a cost of n^1.5.
          membership: "balanced" or "causal".
          relative: number of distances with a learned vector r, whose product with the query is added to the logit (P.
            Shaw et al., arXiv:1803.02155); distances count members of the cluster. The authors also have such vectors
            for values. Causal only.
          decay: decay of the centroids per training step.
          scale: factor of the logits q . k; default head_dim ** -0.5. The authors normalize after scaling, which is a
            scale of 1.
          dropout: dropout rate of the output.

        Raises:
          ValueError: heads that don't divide the features, or options out of range.
        """
        if head_dim is None and features % num_heads:
            raise ValueError(
                f"{features} features can't be split over {num_heads} heads: give head_dim, or a number of heads that "
                f"divides it"
            )
        if membership not in ("balanced", "causal"):
            raise ValueError(f'membership is "balanced" or "causal", got {membership!r}')
        if not causal and (membership == "causal" or relative is not None):
            raise ValueError('membership="causal" and relative= order the tokens of a cluster: they need causal=True')
        head_dim = head_dim or features // num_heads
        if (
            head_dim < 2
            or clusters < 1
            or (window is not None and window < 1)
            or (relative is not None and relative < 1)
        ):
            raise ValueError(
                f"head_dim must be at least 2, clusters, window and relative at least 1: got {head_dim}, {clusters}, "
                f"{window}, {relative}"
            )
        common = {
            "use_bias": use_bias,
            "kernel_init": kernel_init,
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.query = Linear(features, num_heads * head_dim, **common)
        self.key = None if causal else Linear(features, num_heads * head_dim, **common)
        self.value = Linear(features, num_heads * head_dim, **common)
        self.out = Linear(num_heads * head_dim, features, **common)
        self.relative = nnx.Param(normal(0.02)(rngs.params(), (relative, head_dim), param_dtype)) if relative else None
        self.centroids = Statistic(OnSphere()(rngs.params(), (num_heads, clusters, head_dim)))
        self.dropout = Dropout(dropout, rngs=rngs) if dropout else None
        self.num_heads, self.head_dim, self.clusters, self.window = num_heads, head_dim, clusters, window
        self.causal, self.membership, self.decay = causal, membership, decay
        self.scale = head_dim**-0.5 if scale is None else scale
        self.use_running_average = False  # set by model.train() and model.eval(); True freezes the centroids
        if membership == "causal":
            self.streaming = "exact"

    @property
    def complexity(self) -> float:
        return 1.5 if self.window is None and self.membership == "balanced" else 1.0  # 1.5 up to clusters^2 tokens

    def mix(self, x: jax.Array, tokens: Tokens, members: tuple[jax.Array, jax.Array] | None = None) -> jax.Array:
        """As :meth:`Mixer.mix`.

        Args:
          members: members of the clusters for queries and for keys (the same if causal), in the format of
            :meth:`select`; by default its result. Balanced membership only.
        """
        mask, ids = tokens.mask, tokens.segment_ids
        x = x if mask is None else jnp.where(mask[..., None], x, 0)
        q = self._routing_vectors(self.query, x)
        k = q if self.key is None else self._routing_vectors(self.key, x)
        v = jnp.moveaxis(self.value(x).reshape(*x.shape[:2], self.num_heads, self.head_dim), 2, 1)
        if self.membership == "causal":
            y = self._attend_last(q, v, mask, ids)
        else:
            chosen = members or (self.select(q, mask), self.select(k, mask))
            self.sow(Diagnostic, "members", chosen)
            y = self._attend_members(q, k, v, *chosen, ids)
        self._follow((q,) if self.key is None else (q, k), mask)
        return self._output(y, x)

    def _routing_vectors(self, projection: Linear, x: jax.Array) -> jax.Array:
        """Projections on the sphere, float32 (batch, heads, length, head_dim)."""
        return jnp.moveaxis(on_sphere(projection(x).reshape(*x.shape[:2], self.num_heads, self.head_dim)), 2, 1)

    def _output(self, y: jax.Array, x: jax.Array) -> jax.Array:
        y = self.out(jnp.moveaxis(y, 1, 2).reshape(*x.shape[:2], -1).astype(x.dtype))
        return y if self.dropout is None else self.dropout(y)

    # Balanced membership.

    def _sizes(self, length: int) -> tuple[int, int]:
        """Number of clusters in use, and of slots in each, for rows of at most ``length`` tokens."""
        if self.window is not None or self.membership == "causal":
            return self.clusters, min(self.window or self.clusters, length)
        used = min(self.clusters, math.isqrt(length))
        return used, min(
            length, -(-length // used) + 2
        )  # a shorter row may use fewer clusters, which then need up to two more slots

    def _scores(self, r: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Dot products of vectors and centroids (batch, heads, clusters in use, length); -inf for clusters that a row
        does not use.
        """
        used = self._sizes(r.shape[2])[0]
        centroids = jax.lax.stop_gradient(self.centroids[...][:, :used]).astype(r.dtype)
        scores = jnp.einsum("bhnd,hkd->bhkn", jax.lax.stop_gradient(r), centroids)
        if self.window is None and self.membership == "balanced" and mask is not None:
            own = _root(mask.sum(1, dtype=jnp.int32), used)
            scores = jnp.where((jnp.arange(used) < own[:, None])[:, None, :, None], scores, -jnp.inf)
        return scores

    def select(self, r: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """The members of every cluster.

        Args:
          r: queries or keys on the sphere, (batch, heads, length, head_dim).
          mask: bool (batch, length), True = real token.

        Returns:
          (batch, heads, clusters, window) int32: positions in ascending order, ``length`` for an empty slot.
        """
        batch, _, length, _ = r.shape
        used, places = self._sizes(length)
        scores = self._scores(r, mask)
        real = jnp.full((batch,), length, jnp.int32) if mask is None else mask.sum(1, dtype=jnp.int32)
        if mask is not None:
            scores = jnp.where(mask[:, None, None], scores, -jnp.inf)
        best, index = jax.lax.top_k(scores, places)
        own = jnp.minimum(places, real) if self.window is not None else -(-real // _root(real, used))
        taken = (jnp.arange(places) < own[:, None])[:, None, None] & (best > -jnp.inf)
        return jnp.sort(jnp.where(taken, index, length), axis=-1)

    def _attend_members(
        self, q: jax.Array, k: jax.Array, v: jax.Array, queries: jax.Array, keys: jax.Array, ids: jax.Array | None
    ) -> jax.Array:
        """Attention within clusters, averaged over the clusters of each token: (batch, heads, length, head_dim)."""
        batch, heads, length, _ = q.shape
        places = queries.shape[-1]

        def gather(a: jax.Array, index: jax.Array) -> jax.Array:
            index = jnp.minimum(index, length - 1).reshape(batch, heads, -1, 1)
            return jnp.take_along_axis(a, index, 2).reshape(-1, places, 1, a.shape[-1]).astype(v.dtype)

        def documents(index: jax.Array) -> jax.Array | None:
            if ids is None:
                return None
            index = jnp.minimum(index, length - 1).reshape(batch, -1)
            return jnp.take_along_axis(ids, index, 1).reshape(-1, places)

        rank = jnp.arange(places, dtype=jnp.int32)
        gathered = gather(q, queries)
        with sequence.folded():
            y = attention(
                gathered,
                gather(k, keys),
                gather(v, keys),
                causal=self.causal,
                scale=self.scale,
                bias=self._relative_scores(gathered, (rank[:, None] - rank)[None]),
                key_positions=jnp.where(keys < length, rank, -1).reshape(-1, places),
                query_segments=documents(queries),
                key_segments=documents(keys),
            )
        row, head = jnp.arange(batch)[:, None, None], jnp.arange(heads)[:, None]
        place = queries.reshape(batch, heads, -1)
        total = (
            jnp.zeros(v.shape, jnp.float32)
            .at[row, head, place]
            .add(y.reshape(batch, heads, -1, v.shape[-1]), mode="drop")
        )
        count = jnp.zeros(v.shape[:3], jnp.float32).at[row, head, place].add(1.0, mode="drop")
        return total / jnp.maximum(count, 1)[..., None]

    def _relative_scores(self, q: jax.Array, distance: jax.Array) -> jax.Array | None:
        """Bias (n, 1, queries, keys) of queries q (n, queries, 1, head_dim) at int distances (n or 1, queries, keys).
        """
        if self.relative is None:
            return None
        table = self.relative[...].astype(q.dtype)
        scores = self.scale * jnp.einsum("nqd,rd->nqr", q[:, :, 0], table)
        index = jnp.broadcast_to(jnp.clip(distance, 0, len(table) - 1), (q.shape[0], *distance.shape[1:]))
        return jnp.take_along_axis(scores, index, 2)[:, None]

    # Causal membership.

    def _nearest(self, r: jax.Array, mask: jax.Array | None) -> jax.Array:
        """The cluster of each token, (batch, heads, length) int32; padding gets the nonexistent cluster ``clusters``.
        """
        cluster = jnp.argmax(self._scores(r, mask), axis=2).astype(jnp.int32)
        return cluster if mask is None else jnp.where(mask[:, None], cluster, self.clusters)

    @property
    def _last(self) -> int:
        return self.window or self.clusters

    def _attend_last(self, q: jax.Array, v: jax.Array, mask: jax.Array | None, ids: jax.Array | None) -> jax.Array:
        """Attention of each token to the last members of its cluster: (batch, heads, length, head_dim).

        After sorting by cluster, members are neighbors: chunks of ``window`` tokens attend to themselves and the
        previous chunk.
        """
        batch, heads, length, dim = q.shape
        window, chunk = self._last, min(self._last, length)
        cluster = self._nearest(q, mask)
        self.sow(Diagnostic, "members", cluster)
        order = jnp.argsort(cluster, axis=2, stable=True)
        # Positions are consecutive within a cluster, and different clusters are farther apart than the window.
        place = jnp.arange(length, dtype=jnp.int32) + window * jnp.take_along_axis(cluster, order, 2)

        def chunks(a: jax.Array, fill: Any) -> jax.Array:
            pad = [(0, 0), (0, 0), (0, -length % chunk), *[(0, 0)] * (a.ndim - 3)]
            return jnp.pad(a, pad, constant_values=fill).reshape(batch, heads, -1, chunk, *a.shape[3:])

        def with_previous(a: jax.Array, fill: Any) -> jax.Array:
            if a.shape[2] == 1:
                return a
            first = jnp.full_like(a[:, :, :1], fill)
            return jnp.concatenate([jnp.concatenate([first, a[:, :, :-1]], 2), a], 3)

        sorted_q, sorted_v = (chunks(jnp.take_along_axis(a, order[..., None], 2).astype(v.dtype), 0) for a in (q, v))
        places = chunks(place, -1)
        keys, values, key_places = with_previous(sorted_q, 0), with_previous(sorted_v, 0), with_previous(places, -1)
        reach, documents = keys.shape[3], None
        if ids is not None:
            own = chunks(jnp.take_along_axis(jnp.broadcast_to(ids[:, None], cluster.shape), order, 2), -1)
            documents = own.reshape(-1, chunk), with_previous(own, -1).reshape(-1, reach)
        queries = sorted_q.reshape(-1, chunk, 1, dim)
        distance = reach - chunk + jnp.arange(chunk)[:, None] - jnp.arange(reach)
        with sequence.folded():
            y = attention(
                queries,
                keys.reshape(-1, reach, 1, dim),
                values.reshape(-1, reach, 1, dim),
                causal=True,
                window=(window - 1, 0),
                scale=self.scale,
                bias=self._relative_scores(queries, distance[None]),
                query_positions=places.reshape(-1, chunk),
                key_positions=key_places.reshape(-1, reach),
                query_segments=documents and documents[0],
                key_segments=documents and documents[1],
            )
        y = y.reshape(batch, heads, -1, dim)[:, :, :length]
        row, head = jnp.arange(batch)[:, None, None], jnp.arange(heads)[:, None]
        return jnp.zeros_like(y).at[row, head, order].set(y, unique_indices=True)

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> RoutingCache:
        """An empty state for the last ``window`` members of every cluster; its size does not depend on ``max_length``.
        """
        if not self.causal:
            return super().init_state(batch_size, max_length, dtype)
        shape = (batch_size, self.num_heads, self.clusters, self._last, self.head_dim)
        count, segment = jnp.zeros(shape[:3], jnp.int32), jnp.zeros((batch_size,), jnp.int32)
        return RoutingCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), count, segment)

    def mix_next(self, x: jax.Array, state: RoutingCache, tokens: Tokens) -> tuple[jax.Array, RoutingCache]:
        """As :meth:`Mixer.mix_next`, by causal membership."""
        mask = tokens.mask
        batch, new, _ = x.shape
        window, heads, dim = self._last, self.num_heads, self.head_dim
        x = x if mask is None else jnp.where(mask[..., None], x, 0)
        q = self._routing_vectors(self.query, x)
        v = jnp.moveaxis(self.value(x).reshape(batch, new, heads, dim), 2, 1)
        centroids = self.centroids[...].astype(q.dtype)
        cluster = jnp.argmax(jnp.einsum("bhnd,hkd->bhnk", q, centroids), axis=3).astype(jnp.int32)
        real = jnp.ones((batch, 1, new), bool) if mask is None else mask[:, None]
        joins = (jax.nn.one_hot(cluster, self.clusters, dtype=jnp.int32) * real[..., None]).astype(jnp.int32)
        count = state.count + joins.sum(2, dtype=jnp.int32)
        # Index of a new token among those of its cluster in this call, and (rank) among all members from its document.
        numbers = jnp.cumsum(joins, 2) - joins
        number = jnp.take_along_axis(numbers, cluster[..., None], 3)[..., 0]
        before = jnp.take_along_axis(state.count, cluster, 2)
        rank, segment, documents, stays = before + number, state.segment, None, real
        if tokens.segment_ids is not None:
            segment = last_segment(tokens.segment_ids, mask, state.segment)
            document = numbered(tokens.segment_ids, state.segment, mask)
            first = jnp.argmax(
                document[:, :, None] == document[:, None], axis=2
            )  # the first token of a token's document
            earlier = jnp.take_along_axis(numbers, first[:, None, :, None], 2)
            before = jnp.where(document[:, None] == 0, before, 0)
            rank = before + number - jnp.take_along_axis(earlier, cluster[..., None], 3)[..., 0]
            last = document == document[:, -1:]
            count = jnp.where(document[:, -1, None, None] == 0, state.count, 0) + (joins * last[:, None, :, None]).sum(
                2
            )
            stays = real & last[:, None]
            documents = jnp.broadcast_to(document[:, None], cluster.shape).reshape(-1, new)

        row, head = jnp.arange(batch)[:, None, None], jnp.arange(heads)[:, None]
        newest = before[..., None] - 1
        cached = newest - (newest - jnp.arange(window)) % window  # the member in each slot; negative if there is none
        distance = (rank[..., None] - cached).reshape(-1, 1, window)
        seen = (cached >= 0).reshape(-1, 1, window) & (distance < window)
        queries = q.reshape(-1, 1, 1, dim).astype(v.dtype)
        old, old_lse = attention(
            queries,
            state.key[row, head, cluster].reshape(-1, window, 1, dim).astype(v.dtype),
            state.value[row, head, cluster].reshape(-1, window, 1, dim).astype(v.dtype),
            mask=seen[:, None],
            scale=self.scale,
            bias=self._relative_scores(queries, distance),
            return_lse=True,
        )
        place = (cluster * (new + window) + number).reshape(-1, new)
        queries = q.reshape(-1, new, 1, dim).astype(v.dtype)
        own, own_lse = attention(
            queries,
            queries,
            v.reshape(-1, new, 1, dim),
            causal=True,
            window=(window - 1, 0),
            scale=self.scale,
            bias=self._relative_scores(queries, place[:, :, None] - place[:, None]),
            query_positions=place,
            key_positions=jnp.where(jnp.broadcast_to(real, cluster.shape).reshape(-1, new), place, -1),
            query_segments=documents,
            key_segments=documents,
            return_lse=True,
        )
        shape = (batch, heads, new)
        y, _ = merge([(y.reshape(*shape, dim), lse.reshape(shape)) for y, lse in ((old, old_lse), (own, own_lse))])

        # If tokens share a slot, only the last is kept; the others get an index out of bounds and are dropped.
        kept = stays & (rank >= jnp.take_along_axis(count, cluster, 2) - window)
        slot = jnp.where(kept, rank % window, window)
        return self._output(y, x), RoutingCache(
            key=state.key.at[row, head, cluster, slot].set(q.astype(state.key.dtype), mode="drop"),
            value=state.value.at[row, head, cluster, slot].set(v.astype(state.value.dtype), mode="drop"),
            count=count,
            segment=segment,
        )

    # The centroids.

    def _follow(self, vectors: tuple[jax.Array, ...], mask: jax.Array | None) -> None:
        """Moves the centroids toward their nearest tokens in training, and sows the commitment loss."""
        training = not self.use_running_average
        if not training and not self.sowing(AuxLoss, "commitment"):
            return
        centroids = self.centroids[...]
        used = self._sizes(vectors[0].shape[2])[0]
        nearest = jnp.concatenate([jnp.argmax(self._scores(r, mask), axis=2) for r in vectors], 2)
        r = jnp.concatenate(vectors, 2)
        real = jnp.ones((1, 1, 1), bool) if mask is None else jnp.tile(mask[:, None], (1, 1, len(vectors)))
        real = jnp.broadcast_to(real, nearest.shape).astype(jnp.float32)
        distance = jnp.square(r - centroids[jnp.arange(self.num_heads)[:, None], nearest]).mean(-1)
        self.sow(AuxLoss, "commitment", jnp.sum(distance * real) / jnp.maximum(jnp.sum(real), 1))
        if training:
            belongs = jax.nn.one_hot(nearest, used, dtype=jnp.float32) * real[..., None]
            count = belongs.sum((0, 2))[..., None]
            mean = jnp.einsum("bhnk,bhnd->hkd", belongs, jax.lax.stop_gradient(r).astype(jnp.float32)) / jnp.maximum(
                count, 1
            )
            own = centroids[:, :used]
            moved = on_sphere(self.decay * own + (1 - self.decay) * mean)
            self.centroids[...] = centroids.at[:, :used].set(jnp.where(count > 0, moved, own))


def _root(tokens: jax.Array, most: int) -> jax.Array:
    """Number of clusters for ``tokens`` tokens: floor(sqrt(tokens)), between 1 and ``most``."""
    root = jnp.floor(jnp.sqrt(tokens.astype(jnp.float32))).astype(jnp.int32)
    root = root - (root * root > tokens)  # the float32 root of a large number may have been rounded up
    return jnp.clip(root, 1, most)
