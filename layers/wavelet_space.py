"""WavSpA: Wavelet Space Attention for Boosting Transformers' Long Sequence Learning Ability (Zhuang et al., 2022,
arXiv:2210.01989), section 3.

    y = W^-1 mix(W x)

W is a wavelet transform along the sequence, with a filter for each feature; mix is any mixer, one for each band of
coefficients. Filters are fixed (Daubechies), trained from these initial values ("adaptive", AdaWavSpA, for which W^-1
is only an approximate inverse), or trained as products of rotations, which are always orthogonal ("orthogonal",
OrthoWavSpA); "lift" (LiftWavSpA) is a lifting transform without filters.

Published, average of Long Range Arena: Transformer 54.39, adaptive 70.59, orthogonal 65.90, lift 59.85.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layers.broadcast import widened
from layers.combinators import bidirectional, on_sequence
from layers.initializers import uniform
from layers.mixer import Mixer, MixerSpec, Place, register_mixer, without_padding
from layers.module import parameter
from layers.tokens import Tokens
from layers.wavelets import analyzed, daubechies, lifted, lowered, rotated, synthesized

WAVELETS = ("fixed", "adaptive", "orthogonal", "lift")


@register_mixer("wavelet_space")
class WaveletSpace(Mixer):
    """A mixer applied to wavelet coefficients instead of tokens.

    Each band is a sequence with its own mixer, as in the authors' code, or all bands share one. A masked row is
    reflected at its own end: padding changes nothing. It is bidirectional only: coefficients are sums over tokens
    before and after. The authors' adaptive lifting is not implemented. Their transforms wrap around at the end of the
    reflected sequence, and have more coefficients there; ours follow PyWavelets.

    Parameters: ``inner.N.*``, cA of the last level first; ``filter`` (taps, features) of "adaptive", ``angles`` (taps /
    2, features) of "orthogonal".
    """

    paper = (149,)
    undecayed: ClassVar[tuple[str, ...]] = ("filter", "angles")

    def __init__(
        self,
        features: int,
        *,
        inner: MixerSpec = "attention",
        wavelet: Literal["fixed", "adaptive", "orthogonal", "lift"] = "adaptive",
        levels: int = 2,
        taps: int = 32,
        shared: bool = False,
        place: Place | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          inner: the mixer of the coefficients.
          wavelet: the kind of filters, see above.
          levels: number of times the sequence is halved.
          taps: length of a filter, an even number up to 40.
          shared: one mixer for all bands.

        Raises:
          ValueError: an unknown wavelet, ``levels`` below 1, or ``taps`` that are odd or not from 2 to 40.
        """
        if wavelet not in WAVELETS or levels < 1:
            raise ValueError(
                f"wavelet is one of {', '.join(WAVELETS)} and levels at least 1; got {wavelet!r} and {levels}"
            )
        made: Any = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        begin = daubechies(taps)[:, None].repeat(features, 1)
        trained, turned = wavelet == "adaptive", wavelet == "orthogonal"
        self.filter = parameter(lambda *_: jnp.asarray(begin, param_dtype), begin.shape, made) if trained else None
        self.angles = parameter(uniform(2 * np.pi), (taps // 2, features), made) if turned else None
        self.inner = nnx.List(
            [
                on_sequence(bidirectional(inner, features, place=place, rngs=rngs))
                for _ in range(1 if shared else levels + 1)
            ]
        )
        self.levels, self.taps, self.wavelet = levels, taps, wavelet

    @property
    def complexity(self) -> float:
        return self.inner[0].complexity

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        batch, length, _ = x.shape
        mask, dtype = tokens.mask, x.dtype
        x = without_padding(x, mask).astype(jnp.promote_types(dtype, jnp.float32))
        full = jnp.full((batch,), length, jnp.int32)
        count = full if mask is None else jnp.maximum(mask.sum(1, dtype=jnp.int32), 1)
        lengths = [length]
        for _ in range(self.levels - 1):
            lengths.append((lengths[-1] + (1 if self.wavelet == "lift" else self.taps - 1)) // 2)
        low = None if self.wavelet == "lift" else self._filter(x.shape[-1]).astype(x.dtype)
        bands = lifted(x, count, self.levels) if low is None else analyzed(x, count, low, self.levels)
        mixed = []
        for i, (band, own) in enumerate(bands):
            real = jnp.arange(band.shape[1]) < own[:, None]
            y = self.inner[min(i, len(self.inner) - 1)](band.astype(dtype), None if mask is None else real)
            mixed.append((without_padding(y.astype(x.dtype), real), own))
        y = lowered(mixed, lengths) if low is None else synthesized(mixed, low, lengths)
        return without_padding(y, mask).astype(dtype)

    def _filter(self, features: int) -> jax.Array:
        """h, (taps, features), at least float32."""
        if self.angles is not None:
            return rotated(widened(self.angles[...]))
        if self.filter is not None:
            return widened(self.filter[...])
        return jnp.asarray(daubechies(self.taps)[:, None].repeat(features, 1), jnp.float32)
