"""The residual block: the only place for norm order, layer scale, drop path and the state of causal parts."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from layers.drop import DropPath, LayerScale
from layers.mixer import Mixer, finite_padding
from layers.module import Module
from layers.norm import Norm, create_norm
from pallas_kernels.fusion import gradient_computed_once

NormOrder = Literal["pre", "post"]


class Block(Module):
    """A token mixer and a channel mixer, each a residual branch.

    pre:   x = x + scale(mixer(norm(x)));  x = x + scale(channel(norm(x)))
    post:  x = norm(x + scale(mixer(x)));  x = norm(x + scale(channel(x)))

    ``position`` (a convolution, say) is added first: x = x + position(x). ``channel`` None leaves the
    mixer alone (Mamba). Any part that has ``init_state`` and ``extend`` keeps its share of the state.
    """

    def __init__(
        self,
        mixer: Mixer,
        channel: nnx.Module | None = None,
        *,
        features: int,
        position: nnx.Module | None = None,
        norm: Norm = "layer",
        norm_epsilon: float = 1e-6,
        norm_order: NormOrder = "pre",
        layer_scale: float | None = None,
        drop_path: float | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        mixer, channel, position: the parts, already made.
        layer_scale: initial value of the branches' per-feature factors; None for none.
        drop_path: probability of dropping a branch; None for none. (A stack gives all its blocks a
          rate, or none: 0.0 keeps the block's program equal to its neighbors'.)
        """
        if norm_order not in ("pre", "post"):
            raise ValueError(f'norm_order is "pre" or "post", got {norm_order!r}')

        def make_norm() -> nnx.Module:
            return create_norm(norm, features, epsilon=norm_epsilon, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

        def make_scale() -> LayerScale | None:
            return None if layer_scale is None else LayerScale(features, layer_scale, param_dtype=param_dtype, rngs=rngs)

        def make_drop() -> DropPath | None:
            return None if drop_path is None else DropPath(drop_path, rngs=rngs)

        self.position = position
        self.mixer_norm, self.mixer, self.mixer_scale, self.mixer_drop = make_norm(), mixer, make_scale(), make_drop()
        self.channel = channel
        if channel is not None:
            self.channel_norm, self.channel_scale, self.channel_drop = make_norm(), make_scale(), make_drop()
        self.norm_order = norm_order

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, positions: jax.Array | None = None) -> jax.Array:
        """Maps ``x`` to the same shape; mask and positions as :class:`Mixer`."""
        x = finite_padding(x, mask)
        if self.position is not None:
            x = x + self.position(x)
        x = self._branch(x, self.mixer_norm, lambda h: self.mixer(h, mask, positions), self.mixer_scale, self.mixer_drop)
        if self.channel is not None:
            x = self._branch(x, self.channel_norm, self.channel, self.channel_scale, self.channel_drop)
        return x

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32, context: jax.Array | None = None) -> dict[str, Any]:
        """The states of the parts that look back, by the part's name."""
        parts = {name: getattr(self, name) for name in ("position", "mixer", "channel")}
        return {name: part.init_state(batch_size, max_length, dtype, context) for name, part in parts.items() if hasattr(part, "init_state")}

    def extend(self, x: jax.Array, state: dict[str, Any], mask: jax.Array | None = None) -> tuple[jax.Array, dict[str, Any]]:
        """As :meth:`Mixer.extend`."""
        x, state = finite_padding(x, mask), dict(state)

        def run(name: str, h: jax.Array) -> jax.Array:
            part = getattr(self, name)
            if name not in state:
                return part(h)
            h, state[name] = part.extend(h, state[name], mask)
            return h

        if self.position is not None:
            x = x + run("position", x)
        x = self._branch(x, self.mixer_norm, lambda h: run("mixer", h), self.mixer_scale, self.mixer_drop)
        if self.channel is not None:
            x = self._branch(x, self.channel_norm, lambda h: run("channel", h), self.channel_scale, self.channel_drop)
        return x, state

    def _branch(self, x: jax.Array, norm: Any, call: Any, scale: LayerScale | None, drop: DropPath | None) -> jax.Array:
        x = gradient_computed_once(x)
        h = call(norm(x) if self.norm_order == "pre" else x)
        h = h if scale is None else scale(h)
        h = h if drop is None else drop(h)
        x = x + h.astype(x.dtype)
        return x if self.norm_order == "pre" else norm(x)
