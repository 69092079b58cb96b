"""Nyström attention: Nyströmformer: A Nyström-Based Algorithm for Approximating Self-Attention (Xiong et al., AAAI
2021, arXiv:2102.03902), eqs. 13 to 15.

    Y = softmax(Q K~^T) softmax(Q~ K~^T)^+ softmax(Q~ K^T) V + DWC(V)                logits / sqrt(d)

Q~ and K~, the landmarks, are means of queries and of keys over equal segments of the sequence. The pseudo-inverse is
computed by 6 iterations that start from A^T / max column sum,

    Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4

DWC is a depth-wise convolution of the values over time with one kernel per head. The cost is tokens times landmarks.
"""

from __future__ import annotations

from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp

from layers.attention.projected import HeadOptions, ProjectedAttention
from layers.initializers import variance_scaling
from layers.mixer import register_mixer, without_padding
from layers.module import LayerOptions, Module, of_layers, parameter
from layers.tokens import Tokens
from pallas_kernels import attention, depthwise_convolution


class ValueConvolution(Module):
    """Depth-wise convolution over time with one kernel per head, shared by its features; ``kernel`` (size, 1, 1,
    heads).
    """

    def __init__(self, num_heads: int, kernel_size: int, **options: Unpack[LayerOptions]):
        self.kernel = parameter(variance_scaling(1 / 3, "fan_in", "uniform"), (kernel_size, 1, 1, num_heads), options)

    def __call__(self, heads: jax.Array) -> jax.Array:
        """Maps (batch, length, heads, head_dim) to the same shape."""
        batch, length, _, width = heads.shape
        kernel = jnp.repeat(self.kernel[...].astype(heads.dtype), width, axis=3)
        return depthwise_convolution(heads.reshape(batch, length, 1, -1), kernel).reshape(heads.shape)


@register_mixer("nystrom_attention")
class NystromAttention(ProjectedAttention):
    """Low-rank approximation of softmax attention through a few landmarks.

    A row's segments divide its real tokens and differ by at most one token if the landmarks do not divide their number:
    padding changes nothing. A row with no more tokens than landmarks uses its tokens as landmarks, and its attention is
    exact. The mixer is bidirectional only: each landmark is a mean over tokens before and after a query.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), and ``conv.kernel`` (kernel_size, 1, 1, heads) if there
    is a convolution.
    """

    weighs_values = True

    def __init__(
        self,
        features: int,
        *,
        landmarks: int = 64,
        kernel_size: int | None = 65,
        steps: int = 6,
        inverse: Literal["matrix", "batch"] = "matrix",
        **options: Unpack[HeadOptions],
    ):
        """Args:
          landmarks: number of landmarks; 0 is full attention, which transformers computes for released models, because
            their configurations set ``segment_means_seq_len``, the length to average over, to the number of landmarks.
          kernel_size: kernel size of the convolution in tokens, an odd number; None for no convolution.
          steps: iterations of the pseudo-inverse.
          inverse: column sums from which the pseudo-inverse starts: "matrix", each matrix's own, or "batch", the
            largest over all heads and rows, as in the authors' code, which makes a row's output depend on the other
            rows.
          options: as in :class:`ProjectedAttention`.

        Raises:
          ValueError: features not divisible by num_heads, negative landmarks, no steps, an even kernel size, or an
            unknown ``inverse``.
        """
        if landmarks < 0 or steps < 1 or inverse not in ("matrix", "batch") or (kernel_size or 1) % 2 == 0:
            raise ValueError(
                f'landmarks are at least 0, steps at least 1, kernel_size odd and inverse "matrix" or "batch"; got '
                f"{landmarks}, {steps}, {kernel_size} and {inverse!r}"
            )
        super().__init__(features, **options)
        self.landmarks, self.steps, self.inverse = landmarks, steps, inverse
        common = of_layers(options)
        self.conv = ValueConvolution(self.num_heads, kernel_size, **common) if kernel_size else None

    @property
    def complexity(self) -> float:
        return 1.0 if self.landmarks else 2.0

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        mask = tokens.mask
        y = self._through_landmarks(q, k, v, mask) if self.landmarks else attention(q, k, v, mask=_of_keys(mask))
        return y if self.conv is None else y + self.conv(without_padding(v, None if mask is None else mask[..., None]))

    def _through_landmarks(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
        (batch, length), wide = q.shape[:2], jnp.promote_types(q.dtype, jnp.float32)
        real = jnp.ones((1, length), bool) if mask is None else mask
        count = real.sum(1, dtype=jnp.int32)[:, None]
        few = count <= self.landmarks
        place = jnp.arange(length, dtype=jnp.int32)
        part = jnp.where(few, place, place * self.landmarks // jnp.maximum(count, 1))
        # Shares of tokens in landmarks (batch or 1, length, landmarks).
        share = ((part[..., None] == jnp.arange(self.landmarks)) & real[..., None]).astype(wide)
        size = share.sum(1)
        share = share / jnp.maximum(size, 1)[:, None]
        heads = None if mask is None else mask[..., None]

        def means(a: jax.Array) -> jax.Array:
            share_of_rows = jnp.broadcast_to(share, (batch, *share.shape[1:]))
            return jnp.einsum("bnl,bnhd->blhd", share_of_rows, without_padding(a, heads).astype(wide))

        near, keys = means(q).astype(q.dtype), means(k).astype(k.dtype)
        there = size > 0
        logits = jnp.einsum("blhd,bmhd->bhlm", near.astype(wide), keys.astype(wide)) * self.head_dim**-0.5
        inner = jax.nn.softmax(jnp.where(there[:, None, None], logits, -jnp.inf), -1)
        inner = jnp.where(few[:, None, None], jnp.eye(self.landmarks, dtype=wide), inner)
        gathered = attention(near, k, v, mask=_of_keys(mask)).astype(wide)
        found = jnp.einsum("bhlm,bmhd->blhd", self._inverse(inner, few), gathered)
        found = jnp.where(few[..., None, None], means(v), found).astype(v.dtype)
        return attention(q, keys, found, mask=_of_keys(there))

    def _inverse(self, a: jax.Array, exact: jax.Array) -> jax.Array:
        """The pseudo-inverse of (batch, heads, landmarks, landmarks); ``exact`` marks rows whose matrix is the
        identity.
        """
        columns = a.sum(-2).max(-1)[..., None, None]
        if self.inverse == "batch":
            columns = jnp.where(exact[:, None, None], 1, jnp.where(exact[:, None, None], 0, columns).max())
        z, eye = jnp.swapaxes(a, -1, -2) / columns, jnp.eye(a.shape[-1], dtype=a.dtype)
        for _ in range(self.steps):
            az = a @ z
            z = z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az))) / 4
        return z


def _of_keys(mask: jax.Array | None) -> Any:
    return None if mask is None else mask[:, None, None]
