"""Deep Residual Learning for Image Recognition (He et al., CVPR 2016, arXiv:1512.03385): basic block and bottleneck.

    basic:       y = relu(shortcut(x) + gate(N(conv3x3(relu(N(conv3x3(x)))))))
    bottleneck:  y = relu(shortcut(x) + gate(N(conv1x1(relu(N(mix(relu(N(conv1x1(x))))))))))

Bottlenecks may use another activation than relu, and may have the gate before the last convolution.

N is batch norm; ``mix`` is a token mixer or a 3x3 convolution, which carries the stride in blocks that halve the map
(ResNet v1.5). The gate, if any, is a channel gate such as squeeze-excitation, after the last norm. The shortcut is x
where the shapes agree, else a 1x1 convolution and a norm, applied to x itself (ResNet-B) or to its averages over
strides x strides tokens (ResNet-D: He et al., Bag of Tricks, CVPR 2019, arXiv:1812.01187).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from layers.drop import DropPath
from layers.gates import Gate, create_gate
from layers.initializers import ones, variance_scaling, zeros
from layers.linear import Conv, Linear
from layers.mixer import Mixer
from layers.module import Module
from layers.norm import BatchNorm
from layers.patch import ConvNorm
from layers.pool import AveragePool, average_pool
from layers.sequential import Sequential
from layers.tokens import Known, Tokens

Shortcut = Literal["convolution", "average"]
# He et al., Delving Deep into Rectifiers (2015), by fan-out.
_INIT = variance_scaling(2.0, "fan_out", "normal")


class _Residual(Module):
    """What both blocks share beside their convolutions: the gate, the shortcut and the sum."""

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        strides: int,
        shortcut: Shortcut,
        gate: nnx.Module | None,
        drop_path: float | None,
        activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        if shortcut not in ("convolution", "average"):
            raise ValueError(f'shortcut is "convolution" or "average", got {shortcut!r}')
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.gate, self.gate_inside, self.activation = gate, False, activation
        self.drop = None if drop_path is None else DropPath(drop_path, rngs=rngs)
        same = strides == 1 and in_features == features
        self.shortcut = None if same else _shortcut(in_features, features, strides, shortcut, **common)

    def branch(self, x: jax.Array) -> jax.Array:
        """The convolutions, up to the last norm."""
        raise NotImplementedError

    def __call__(self, x: jax.Array, tokens: Known = None) -> jax.Array:
        """Maps (batch, height, width, in_features) to (batch, height / strides, width / strides, features), rounded up.

        Raises:
          ValueError: anything is known of the tokens, such as a mask: convolutions and batch norms would mix masked
            tokens into the rest.
        """
        if given := Tokens.of(tokens).given():
            reason = "its convolutions and norms see all tokens alike; leave it out"
            raise ValueError(f"{type(self).__name__} does not honor {min(given)}: {reason}")
        h = self.branch(x)
        h = h if self.gate_inside else self._gated(h)
        h = h if self.drop is None else self.drop(h)
        x = x if self.shortcut is None else self.shortcut(x)
        return self.activation(x + h.astype(x.dtype))

    def _gated(self, x: jax.Array) -> jax.Array:
        gate: Any = self.gate
        return x if gate is None else gate(x)


def _shortcut(in_features: int, features: int, strides: int, kind: Shortcut, **common: Any) -> Sequential:
    """The shortcut between different shapes: averages, if of that kind, then a 1x1 convolution and a norm."""
    pool = [AveragePool(strides)] if kind == "average" else []
    conv = Conv(
        in_features, features, (1, 1), strides=1 if pool else strides, use_bias=False, kernel_init=_INIT, **common
    )
    return Sequential([*pool, conv, BatchNorm(features, **common)])


class BasicBlock(_Residual):
    """Two 3x3 convolutions with a residual connection (equation at the top of the file)."""

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        strides: int = 1,
        shortcut: Shortcut = "convolution",
        gate: Gate | None = None,
        zero_init: bool = False,
        drop_path: float | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          strides: stride of the first convolution.
          shortcut: used where the shapes differ: "convolution" (B) or "average" (D).
          gate: a channel gate after the last norm: see :func:`layers.gates.create_gate`.
          zero_init: the last norm's scale starts at 0, so that the block starts as its shortcut (Goyal et al., 2017).
          drop_path: probability of dropping the branch; None for none.

        Raises:
          ValueError: an unknown shortcut or gate.
        """
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        gates = None if gate is None else create_gate(gate, features, **common)
        super().__init__(
            in_features, features, strides=strides, shortcut=shortcut, gate=gates, drop_path=drop_path, **common
        )
        self.first = ConvNorm(
            in_features, features, strides=strides, activation=jax.nn.relu, use_bias=False, kernel_init=_INIT, **common
        )
        self.second = ConvNorm(features, features, norm=None, use_bias=False, kernel_init=_INIT, **common)
        self.second_norm = BatchNorm(features, scale_init=zeros if zero_init else ones, **common)

    def branch(self, x: jax.Array) -> jax.Array:
        return self.second_norm(self.second(self.first(x)))


class Bottleneck(_Residual):
    """A 1x1 convolution to fewer features, a 3x3 convolution or token mixer, a 1x1 convolution back; residual.

    A mixer usually keeps the size of the map: its output is then average-pooled by the block's stride (BoTNet: Srinivas
    et al., CVPR 2021, arXiv:2101.11605). A mixer with strides of its own is not pooled by those.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        width: int | None = None,
        mixer: Mixer | None = None,
        groups: int = 1,
        strides: int = 1,
        shortcut: Shortcut = "convolution",
        gate: Gate | None = None,
        gate_inside: bool = False,
        activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
        zero_init: bool = False,
        drop_path: float | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          width: features between the 1x1 convolutions; default a quarter of ``features``.
          mixer: a mixer of grids of ``width`` features; None uses the 3x3 convolution with ``groups`` groups (ResNeXt).
          gate_inside: the gate is before the last convolution, on ``width`` channels.
          activation: replaces relu.
          others: as in :class:`BasicBlock`.

        Raises:
          ValueError: an unknown shortcut or gate, or groups and a mixer.
        """
        if mixer is not None and groups != 1:
            raise ValueError(
                f"groups={groups} is an option of the 3x3 convolution, which {type(mixer).__name__} replaces"
            )
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        width = features // 4 if width is None else width
        gates = None if gate is None else create_gate(gate, width if gate_inside else features, **common)
        options: dict[str, Any] = {"strides": strides, "shortcut": shortcut, "activation": activation}
        super().__init__(in_features, features, gate=gates, drop_path=drop_path, **options, **common)
        self.gate_inside = gate_inside
        pointwise: dict[str, Any] = {"use_bias": False, "kernel_init": _INIT, **common}
        self.reduce, self.reduce_norm = Linear(in_features, width, **pointwise), BatchNorm(width, **common)
        conv: dict[str, Any] = {"strides": strides, "padding": 1, "feature_group_count": groups}
        self.mixer = Conv(width, width, (3, 3), **conv, **pointwise) if mixer is None else mixer
        self.mixer_norm = BatchNorm(width, **common)
        self.expand = Linear(width, features, **pointwise)
        self.expand_norm = BatchNorm(features, scale_init=zeros if zero_init else ones, **common)
        self.pool = 1 if mixer is None else strides // mixer.strides

    def branch(self, x: jax.Array) -> jax.Array:
        h = self.mixer(self.activation(self.reduce_norm(self.reduce(x))))
        h = h if self.pool == 1 else average_pool(h, self.pool)
        h = self.activation(self.mixer_norm(h))
        return self.expand_norm(self.expand(self._gated(h) if self.gate_inside else h))
