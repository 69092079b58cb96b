"""Softplus attention, LSSA and LSSAR: Softplus Attention with Re-weighting Boosts Length Extrapolation in Large
Language Models (Gao and Spratling, 2025, arXiv:2501.13428).

    a_ij = softplus(log(d) log(N_i) q_i . k_j)            w_ij = a_ij / sum_j a_ij           (LSSA)
    w'_ij = relu(N_i w_ij - o_i)^p / sum_j (...)          o_i = 1 where N_i > 3, else 0      (LSSAR)

q and k are unit vectors, N_i is the number of tokens that token i sees, and 1e-8 is added to each denominator. Both
normalizations are computed as softmaxes of logarithms: only this form keeps the powers within float32 (p = 15 overflows
from 370 tokens on). The added 1e-8 is a logit without a value.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from layers.attention.multi_head import MultiHeadAttention, Pair
from layers.attention.projected import HeadOptions
from layers.mixer import register_mixer
from layers.module import Diagnostic
from layers.position import Rotary
from layers.tokens import Continuation, Tokens
from pallas_kernels import attention, attention_weights

EPSILON = 1e-8


@dataclasses.dataclass(frozen=True)
class LogSoftplus:
    """Score function log(softplus(scale * logits)) of the attention op, with one ``scale`` per query.

    Instances compare by value: equal ones share compiled programs.
    """

    def __call__(self, logits: Any, head: Any, q: Any, k: Any, scale: Any) -> Any:
        z = scale * logits
        # log softplus(z) = z - exp(z) / 2 + ... far below 0.
        return jnp.where(z < -15, z, jnp.log(jax.nn.softplus(jnp.maximum(z, -15))))


@dataclasses.dataclass(frozen=True)
class LogPower(LogSoftplus):
    """Score function of LSSAR: p log relu(N w - o), with the LSSA weights w = softplus(...) / exp(total)."""

    power: float

    def __call__(  # type: ignore[override]
        self, logits: Any, head: Any, q: Any, k: Any, scale: Any, total: Any, seen: Any, less: Any
    ) -> Any:
        weight = jnp.exp(super().__call__(logits, head, q, k, scale) - total)
        return self.power * jnp.log(jnp.maximum(seen * weight - less, 1e-30))


@register_mixer("softplus_attention")
class SoftplusAttention(MultiHeadAttention):
    """Attention whose weights are normalized softplus logits, sharpened by a power.

    The sharpness of the weights does not depend on the length, so models trained on short texts extrapolate to long
    ones.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear).
    """

    paper = (4,)

    def __init__(
        self,
        features: int,
        *,
        causal: bool = False,
        power: float | None = 15.0,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        rotary: Rotary | Mapping[str, Any] | float | None = None,
        **options: Unpack[HeadOptions],
    ):
        """Args:
          power: p of LSSAR; the paper uses 15, and finds 3 best at the training length. None is LSSA.
          causal, num_kv_heads, head_dim, rotary, options: as in :class:`MultiHeadAttention`, without biases by default.

        Raises:
          ValueError: a power below 1, or head_dim 1, where log(d) = 0.
        """
        options.setdefault("use_bias", False)
        heads: dict[str, Any] = {"num_kv_heads": num_kv_heads, "head_dim": head_dim, "rotary": rotary}
        super().__init__(features, causal=causal, qk_norm="unit", scale=1.0, **heads, **options)
        if power is not None and power < 1:
            raise ValueError(f"power={power} would not sharpen the weights: give at least 1, or None for LSSA")
        if self.head_dim < 2:
            raise ValueError("the scores of heads of 1 feature are all 0, log(1): give heads of at least 2")
        self.power = power

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        places, ids = tokens.positions, tokens.segment_ids
        ordered = places if places is not None and places.ndim == 2 else None
        seen = tokens.count(x.shape[1], causal=self.causal)
        return self._weigh(q, k, v, seen, mask=tokens.mask, positions=(ordered, ordered), segments=(ids, ids))

    def core_next(
        self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens, state: Any, after: Continuation
    ) -> tuple[jax.Array, Any]:
        written, held, segments = self.read({"key": k, "value": v}, tokens, state, after)
        positions = tokens.positions_or(after.positions), held.positions
        return self._weigh(
            q, held.key, held.value, after.positions + 1, positions=positions, segments=segments
        ), written

    def _weigh(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        seen: jax.Array,
        *,
        mask: jax.Array | None = None,
        positions: Pair = (None, None),
        segments: Pair = (None, None),
    ) -> jax.Array:
        """The head outputs; ``seen`` is N, (batch or 1, queries)."""
        options = self.asked(q, k, mask=mask, positions=positions, segments=segments)
        number = seen.astype(jnp.float32)[..., None]
        scale = math.log(self.head_dim) * jnp.log(number)
        extra = jnp.full((self.num_heads,), math.log(EPSILON), jnp.float32)
        options |= {"score": LogSoftplus(), "rows": scale, "sinks": extra}
        k, v = k.astype(q.dtype), v.astype(q.dtype)
        if self.power is not None:
            total = attention(q, k, v[..., :1], **options, return_lse=True)[1]
            options |= {"score": LogPower(self.power), "rows": (scale, total, number, 1.0 * (number > 3))}
        if self.sowing(Diagnostic, "attention"):
            self.sow(Diagnostic, "attention", attention_weights(q, k, **options))
        return attention(q, k, v, **options)
