"""Fourier mixing: FNet: Mixing Tokens with Fourier Transforms (Lee-Thorp et al., NAACL 2022, arXiv:2105.03824), eq. 1.

    y = Re F_length(F_features(x))

the real part of the discrete Fourier transform over features, then over the tokens. No parameters; n log n operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from layers.mixer import Mixer, register_mixer, without_padding
from layers.tokens import Tokens

MOST = 2**20
"""Maximum row length for which the masked transform has exact angles."""


def transform(x: jax.Array, lengths: jax.Array) -> jax.Array:
    """The discrete Fourier transform of the first ``lengths`` entries of each row, ignoring the others.

    Bluestein's algorithm: with w = exp(-i pi / length), w^(2 j k) = w^(j^2) w^(k^2) w^(-(k - j)^2), so that a transform
    of any length is a convolution, here of one size for all rows.

    Args:
      x: complex (batch, length, features).
      lengths: int32 (batch,), at least 1.

    Returns:
      The shape and dtype of x; entries beyond a row's length are 0.

    Raises:
      ValueError: more than 2^20 entries.
    """
    length = x.shape[1]
    if length > MOST:
        raise ValueError(f"a masked Fourier transform has at most {MOST} tokens, got {length}: leave the mask out")
    place = jnp.arange(length, dtype=jnp.uint32)
    period = 2 * lengths[:, None].astype(jnp.uint32)
    # place^2 modulo the period of the angle, computed in parts that fit into 32 bits.
    high, low = (place >> 8) * place % period, (place & 255) * place
    turns = ((high * 256 + low) % period).astype(x.real.dtype) / lengths[:, None]
    chirp = jnp.exp(-1j * jnp.pi * turns).astype(x.dtype)[..., None]
    inside = (place < lengths[:, None])[..., None]
    kernel = jnp.conj(chirp)
    around = jnp.concatenate([kernel, jnp.zeros_like(kernel[:, :1]), kernel[:, :0:-1]], 1)
    signal = jnp.fft.fft(jnp.where(inside, x * chirp, 0), 2 * length, axis=1)
    return jnp.where(inside, chirp * jnp.fft.ifft(signal * jnp.fft.fft(around, axis=1), axis=1)[:, :length], 0)


@register_mixer("fourier_mixing")
class FourierMixing(Mixer):
    """The Fourier transform over tokens and features; it has no parameters, and every token reaches every other.

    A masked row is transformed at its own length: padding changes nothing. The authors' code and transformers include
    padding in the transform: to compare with them give no mask.

    Any length works. It is bidirectional only: each frequency is a sum over all tokens.
    """

    refusals: ClassVar[Mapping[str, str]] = {
        "positions": "the transform counts places in the row: leave positions out",
        "segment_ids": "the transform is one of the whole row: give each document a row of its own",
    }

    def __init__(self, features: int, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        """There are no parameters; ``dtype``, ``param_dtype`` and ``rngs`` are ignored."""

    @property
    def complexity(self) -> float:
        return 1.0

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        wide = without_padding(x, tokens.mask).astype(jnp.promote_types(x.dtype, jnp.float32))
        mixed = jnp.fft.fft(wide, axis=2)
        if tokens.mask is None:
            return jnp.fft.fft(mixed, axis=1).real.astype(x.dtype)
        lengths = jnp.maximum(tokens.mask.sum(1, dtype=jnp.int32), 1)
        return transform(mixed, jnp.broadcast_to(lengths, x.shape[:1])).real.astype(x.dtype)
