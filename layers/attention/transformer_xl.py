"""Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context (Dai et al., 2019, arXiv:1901.02860), section
3.

    y_i = W_o sum_j softmax_j(((q_i + u) . k_j + (q_i + v) . W_r R_{i-j}) / sqrt(d)) v_j

A text is cut into segments of S tokens. Token i of segment s = i // S sees its segment up to itself and the last P
tokens before the segment: S s - P <= j <= i. R_n holds the sines, then the cosines of n / 10000^(2 c / features).

The mask depends only on positions, so a text of any length is one call, in training too, and the gradient passes
through the memory within the call; between calls the state holds keys and values of the last S + P tokens. (The authors
store the hidden states instead, and stop the gradient at each segment.)
"""

from __future__ import annotations

import dataclasses
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from layers.attention.multi_head import MultiHeadAttention
from layers.attention.projected import HeadOptions, of_projections
from layers.broadcast import broadcast
from layers.initializers import normal
from layers.linear import Linear
from layers.mixer import register_mixer
from layers.module import Diagnostic, parameter
from pallas_kernels import attention, attention_weights
from pallas_kernels.attention.masks import Pattern


@dataclasses.dataclass(frozen=True)
class SegmentAndMemory(Pattern):
    """Mask: keys from ``memory`` tokens before the query's segment onward are visible."""

    segment: int
    memory: int

    def __call__(self, q: Any, k: Any) -> Any:
        return k >= q // self.segment * self.segment - self.memory


@register_mixer("transformer_xl")
class TransformerXLAttention(MultiHeadAttention):
    """Causal softmax attention to a segment and a memory of the tokens before it, with relative position keys.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear); ``distance`` (linear), W_r; ``content`` and ``place``
    (heads, head_dim), u and v, separate in each layer. Each call of ``extend`` recomputes the keys of all S + P
    distances.
    """

    paper = (178,)
    supports_bidirectional = False
    undecayed = ("content", "place")

    def __init__(
        self,
        features: int,
        *,
        segment: int = 512,
        memory: int = 512,
        clamp: int | None = None,
        head_dim: int | None = None,
        **options: Unpack[HeadOptions],
    ):
        """Args:
          segment, memory: S and P. The models for enwik8 use 512 and 512, or 768 and 768, those for WikiText-103 150
            and 150, or 384 and 384.
          clamp: greater distances are clipped to this one; None for no clipping.
          head_dim, options: as in :class:`MultiHeadAttention`, without biases by default.

        Raises:
          ValueError: features not divisible by num_heads, a segment below 1, or a negative memory.
        """
        if segment < 1 or memory < 0:
            raise ValueError(f"a segment has at least 1 token and a memory at least 0; got {segment} and {memory}")
        options["use_bias"] = options.get("use_bias", False)
        visible = SegmentAndMemory(segment, memory)
        super().__init__(features, causal=True, window=segment + memory, visible=visible, head_dim=head_dim, **options)
        shape = self.num_heads, self.head_dim
        self.distance = Linear(features, shape[0] * shape[1], use_bias=False, **of_projections(options))
        self.content, self.place = (parameter(normal(0.02), shape, options) for _ in range(2))
        self.features, self.clamp = features, clamp

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, **known: Any) -> jax.Array:
        q, options = self.placed(q, k, **known)
        if self.sowing(Diagnostic, "attention"):
            self.sow(Diagnostic, "attention", attention_weights(q, k, **options))
        return attention(q, k.astype(q.dtype), v.astype(q.dtype), **options)

    def placed(self, q: jax.Array, k: jax.Array, **known: Any) -> tuple[jax.Array, dict[str, Any]]:
        """Queries with u added, and options for :func:`pallas_kernels.attention`, including the relative keys.

        Args:
          known: as in :meth:`MultiHeadAttention.asked`.
        """
        assert self.window is not None
        keys = self.distance(jnp.asarray(self._sinusoids(), q.dtype)).reshape(self.window, *q.shape[2:])
        options = {
            **self.asked(q, k, **known),
            "relative_keys": jnp.moveaxis(keys, 1, 0),
            "relative_query": q + broadcast(self.place[...], q.shape, q.dtype),
            "relative_origin": 1 - self.window,
        }
        return q + broadcast(self.content[...], q.shape, q.dtype), options

    def _sinusoids(self) -> np.ndarray:
        """R for the distances S + P - 1 down to 0, (S + P, features)."""
        assert self.window is not None
        distances = np.arange(self.window - 1, -1, -1, dtype=np.float64)
        distances = distances if self.clamp is None else np.minimum(distances, self.clamp)
        angles = distances[:, None] / 10000.0 ** (np.arange(0, self.features, 2) / self.features)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)[:, : self.features].astype(np.float32)
