"""Rethinking Attention: Exploring Shallow Feed-Forward Neural Networks as an Alternative to Attention Layers in
Transformers (Bozic et al., AAAI 2024, arXiv:2311.10642).

    x' = [x_1; ...; x_n; 0; ...; 0]        y = W_2 LN(f(W_1 LN(x') + b_1)) + b_2        f is a leaky ReLU of slope 0.01

All tokens of a sentence, padded to length L, are one input vector of L D numbers, and the outputs of all tokens one
output vector: the encoder's attention layer replacement (ALR). In a decoder W_2 has only the D rows of one token, and
each token has its own x', without the tokens after it. The paper's sentences have L = 50 and D = 128; hidden features
are L D / 256 (XS), / 128 (S), / 8 (M), / 2 (L), and 2 L D (XL). It trains each of them to reproduce the output of a
trained attention layer, and then replaces that layer by it.

W_1 has a matrix for each position, so W_1 LN(x') is a sum over tokens, as are the mean and the variance of x'. For the
prefixes of a causal model these are running sums, which are the whole state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx, struct

from layers.broadcast import broadcast, widened
from layers.initializers import Uniform, ones, zeros
from layers.mixer import Mixer, register_mixer, without_padding
from layers.module import LayerOptions, parameter
from layers.norm import LayerNorm
from layers.tokens import Tokens
from pallas_kernels import linear_scan

EPSILON = 1e-5


@struct.dataclass
class PrefixState:
    """The state after the tokens read so far.

    Attributes:
      sums: (batch, hidden + 2), at least float32: the sums of W_1 x, of x and of x^2.
      length: (batch,) int32, number of tokens read.
    """

    sums: jax.Array
    length: jax.Array


@register_mixer("feed_forward_mixing")
class FeedForwardMixing(Mixer):
    """An MLP over all tokens of a sentence at once; if causal, for each token over the tokens up to it.

    Parameters: ``scale`` and ``shift`` (max_length, features) of the first norm, ``up`` (max_length, features, hidden),
    ``up_bias``, ``norm`` (hidden), ``down`` (hidden, features), or (max_length, hidden, features) if not causal, and
    ``down_bias`` (features,), or (max_length, features).
    """

    supports_causal = True
    paper = (100,)
    undecayed: ClassVar[tuple[str, ...]] = ("scale", "shift", "up_bias", "down_bias")
    refusals: ClassVar[Mapping[str, str]] = {
        "positions": "it has matrices for each place of the sequence: leave positions out",
        "segment_ids": "it has matrices for each place of the sequence: give each document a row of its own",
    }

    def __init__(
        self,
        features: int,
        *,
        max_length: int = 256,
        hidden: int | None = None,
        causal: bool = False,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          max_length: L, the maximum number of tokens.
          hidden: hidden features; None uses ``features``.

        Raises:
          ValueError: a size below 1.
        """
        hidden = features if hidden is None else hidden
        if max_length < 1 or hidden < 1:
            raise ValueError(f"max_length and hidden are at least 1, got {max_length} and {hidden}")
        options: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        places = (max_length, features)
        bounds = ((max_length * features) ** -0.5, hidden**-0.5)
        up, down = (Uniform(-bound, bound) for bound in bounds)
        self.scale, self.shift = parameter(ones, places, options), parameter(zeros, places, options)
        self.up, self.up_bias = parameter(up, (*places, hidden), options), parameter(zeros, (hidden,), options)
        self.norm = LayerNorm(hidden, epsilon=EPSILON, **options)
        outputs = (features,) if causal else places
        self.down = parameter(down, (*outputs[:-1], hidden, features), options)
        self.down_bias = parameter(zeros, outputs, options)
        self.features, self.max_length, self.hidden, self.causal = features, max_length, hidden, causal
        self.dtype = dtype

    @property
    def complexity(self) -> float:
        return 1.0

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        """As :meth:`Mixer.mix`.

        Raises:
          ValueError: more tokens than ``max_length``.
        """
        length, x = x.shape[1], x if self.dtype is None else x.astype(self.dtype)
        self._check(length)
        parts = self._parts(without_padding(x, tokens.mask), self._matrices(x.dtype)[:length])
        if self.causal:
            return self._of_one(linear_scan(parts), x.dtype)
        y = jnp.einsum("bh,lhd->bld", self._hidden(parts.sum(1)).astype(x.dtype), self.down[:length].astype(x.dtype))
        return y + broadcast(self.down_bias[:length], y.shape, y.dtype)

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> PrefixState:
        """An empty state; its size does not depend on the length, and it is never narrower than float32."""
        if not self.causal:
            return super().init_state(batch_size, max_length, dtype)
        sums = jnp.zeros((batch_size, self.hidden + 2), jnp.promote_types(dtype, jnp.float32))
        return PrefixState(sums, jnp.zeros((batch_size,), jnp.int32))

    def mix_next(self, x: jax.Array, state: PrefixState, tokens: Tokens) -> tuple[jax.Array, PrefixState]:
        """As :meth:`Mixer.mix_next`.

        Raises:
          ValueError: more tokens than ``max_length`` (outside ``jit``, where lengths are known).
        """
        batch, new, _ = x.shape
        count = jnp.full_like(state.length, new) if tokens.mask is None else tokens.mask.sum(1, dtype=jnp.int32)
        length = state.length + count
        if not isinstance(length, jax.core.Tracer):
            self._check(int(length.max()))
        x = without_padding(x if self.dtype is None else x.astype(self.dtype), tokens.mask)
        places = state.length[:, None] + jnp.arange(new)
        if new == 1:
            parts = self._parts(x, self._matrices(x.dtype)[places], "bld,bldh")
        else:  # tokens of a row at their places, instead of a matrix for each token of each row
            row = jnp.arange(batch)[:, None]
            at_places = jnp.zeros((batch, self.max_length, self.features), x.dtype).at[row, places].set(x, mode="drop")
            parts = self._parts(at_places, self._matrices(x.dtype))
            parts = jnp.take_along_axis(parts, jnp.minimum(places, self.max_length - 1)[..., None], axis=1)
        sums, last = linear_scan(parts, initial_state=state.sums, return_state=True)
        return self._of_one(sums, x.dtype), PrefixState(last.astype(state.sums.dtype), length)

    def _check(self, length: int) -> None:
        if length > self.max_length:
            raise ValueError(
                f"feed_forward_mixing has matrices for {self.max_length} tokens, got {length}: make it with a larger "
                f"max_length"
            )

    def _matrices(self, dtype: Any) -> jax.Array:
        """W_1 with the norm's scale, (max_length, features, hidden)."""
        return (widened(self.scale[...])[..., None] * widened(self.up[...])).astype(dtype)

    def _parts(self, x: jax.Array, matrices: jax.Array, equation: str = "bld,ldh") -> jax.Array:
        """What each token adds to the sums of :class:`PrefixState`: (batch, length, hidden + 2), at least float32."""
        wide = jnp.promote_types(x.dtype, jnp.float32)
        # Positions first: XLA has no product in bfloat16 with the sums in float32 on a CPU where rows are first.
        products = jnp.einsum(f"{equation}->lbh", x, matrices, preferred_element_type=wide).swapaxes(0, 1)
        exact = x.astype(wide)
        return jnp.concatenate([products, jnp.stack([exact.sum(-1), (exact**2).sum(-1)], axis=-1)], axis=-1)

    def _hidden(self, sums: jax.Array) -> jax.Array:
        """LN(f(W_1 LN(x') + b_1)) (..., hidden), from the sums of the tokens of x'."""
        size, up = self.max_length * self.features, widened(self.up[...])
        of_mean, of_shift = (jnp.einsum("ld,ldh->h", widened(a[...]), up) for a in (self.scale, self.shift))
        mean, square = sums[..., -2:-1] / size, sums[..., -1:] / size
        deviation = jnp.sqrt(jnp.maximum(square - mean**2, 0) + EPSILON)
        hidden = (sums[..., :-2] - mean * of_mean) / deviation + of_shift + widened(self.up_bias[...])
        return self.norm(jax.nn.leaky_relu(hidden))

    def _of_one(self, sums: jax.Array, dtype: Any) -> jax.Array:
        y = self._hidden(sums).astype(dtype) @ self.down[...].astype(dtype)
        return y + broadcast(self.down_bias[...], y.shape, dtype)
