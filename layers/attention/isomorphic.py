"""Graph isomorphism attention: Graph-Aware Isomorphic Attention for Adaptive Dynamics in Transformers (Buehler, 2025,
arXiv:2501.02393), section 2.2.

    y_h = MLP_h(e_h x_h + f(A_h - t) x_h)        A_h = softmax(Q_h K_h^T / sqrt(d))

The attention matrix of a head is the adjacency matrix of a graph whose nodes are the tokens. A layer of a graph
isomorphism network (Xu et al., 2019, arXiv:1810.00826) runs on it: the weighted sum over neighbors, taken of the slices
x_h of the input without a value projection, goes through an MLP per head. The paper weights the node itself by 1 + e;
the authors' code, followed here, by e, which is initially 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from layers.attention.multi_head import MultiHeadAttention
from layers.attention.projected import HeadOptions
from layers.broadcast import broadcast
from layers.drop import Dropout
from layers.initializers import constant, variance_scaling, zeros
from layers.linear import Linear
from layers.mixer import register_mixer
from layers.module import Diagnostic, Module, of_layers, parameter
from layers.norm import create_norm
from layers.position import Rotary
from pallas_kernels import attention, attention_weights

Edges = Literal["softmax", "relu", "silu", "softplus", "sigmoid"]
SHARPNESS = 10.0
FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "sigmoid": lambda x: jax.nn.sigmoid(SHARPNESS * x),
}


@dataclasses.dataclass(frozen=True)
class Edge:
    """The score function f(A - t) of the attention op: A = exp(logits - total), with ``total`` their log-sum-exp.

    Instances compare by value: equal ones share compiled programs.
    """

    function: str
    threshold: float

    def __call__(self, logits: Any, head: Any, q: Any, k: Any, total: Any) -> Any:
        # Logits of masked keys may exceed the log-sum-exp.
        return FUNCTIONS[self.function](jnp.exp(jnp.minimum(logits - total, 0)) - self.threshold)


class HeadMLP(Module):
    """Linear, RMSNorm, SiLU, linear, with separate weights for each head.

    Parameters: ``up``, ``down`` (heads, in, out), ``up_bias``, ``down_bias``, ``scale`` (heads, features).
    """

    def __init__(
        self, num_heads: int, width: int, hidden: int, *, dropout: float, dtype: Any, param_dtype: Any, rngs: nnx.Rngs
    ):
        """Args:
        num_heads, width, hidden: number of heads, features per head, and hidden features per head.
        dropout: dropout rate of the hidden features.
        """

        def parameter(init: Any, *shape: int) -> nnx.Param:
            return nnx.Param(init(rngs.params(), (num_heads, *shape), param_dtype))

        kernel = variance_scaling(1 / 3, "fan_in", "uniform")
        self.up, self.down = parameter(kernel, width, hidden), parameter(kernel, hidden, width)
        self.up_bias, self.down_bias = parameter(zeros, hidden), parameter(zeros, width)
        self.scale = parameter(constant(1.0), hidden)
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm = create_norm("simple_rms", hidden, epsilon=1e-6, **common)
        self.dropout = Dropout(dropout, rngs=rngs) if dropout else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``x`` (batch, length, heads, width) to the same shape."""
        hidden = jnp.einsum("blhd,hde->blhe", x, self.up[...].astype(x.dtype))
        hidden += broadcast(self.up_bias[...], hidden.shape, hidden.dtype)
        hidden = hidden if self.dropout is None else self.dropout(hidden)
        hidden = jax.nn.silu(self.norm(hidden) * broadcast(self.scale[...], hidden.shape, hidden.dtype))
        y = jnp.einsum("blhe,hed->blhd", hidden, self.down[...].astype(x.dtype))
        return y + broadcast(self.down_bias[...], y.shape, y.dtype)


@register_mixer("gin_attention")
class IsomorphicAttention(MultiHeadAttention):
    """Attention whose values are the tokens themselves and whose head outputs go through an MLP per head.

    Parameters: ``query``, ``key`` (linear), ``self_weight`` (heads,), e; ``mlp`` (:class:`HeadMLP`), and ``out``
    (linear) if enabled.
    """

    projects_values = False
    paper = (219,)

    def __init__(
        self,
        features: int,
        *,
        causal: bool = False,
        edges: Edges = "softmax",
        threshold: float = 0.2,
        expansion: float = 2.0,
        project: bool = True,
        rotary: Rotary | Mapping[str, Any] | float | None = None,
        **options: Unpack[HeadOptions],
    ):
        """Args:
          causal, rotary, options: as in :class:`MultiHeadAttention`, without biases by default. Dropout applies to the
            hidden features of the MLPs; the authors use 0.1.
          edges: f; "softmax" uses A itself, without f or t. "sigmoid" is sigmoid(10 (A - t)).
          threshold: t.
          expansion: hidden features of an MLP / head_dim.
          project: whether an output projection follows the MLPs.

        Raises:
          ValueError: features not divisible by num_heads, or unknown edges.
        """
        if edges not in ("softmax", *FUNCTIONS):
            raise ValueError(f"edges={edges!r} are not known: softmax, {', '.join(FUNCTIONS)}")
        options.setdefault("use_bias", False)
        dropout = options.pop("dropout", 0.0)
        super().__init__(features, causal=causal, rotary=rotary, **options)
        self.self_weight = parameter(zeros, (self.num_heads,), options)
        hidden = int(expansion * self.head_dim)
        self.mlp = HeadMLP(self.num_heads, self.head_dim, hidden, dropout=dropout, **of_layers(options))
        self.out: Linear | None = self.out if project else None  # type: ignore[assignment]
        self.edge = None if edges == "softmax" else Edge(edges, threshold)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, **known: Any) -> jax.Array:
        options, k, v = self.asked(q, k, **known), k.astype(q.dtype), v.astype(q.dtype)
        if self.edge is not None:
            total = attention(q, k, v[..., :1], **options, return_lse=True)[1]
            options |= {"score": self.edge, "rows": total, "normalize": "none"}
        if self.sowing(Diagnostic, "attention"):
            self.sow(Diagnostic, "attention", attention_weights(q, k, **options))
        own = x.reshape(q.shape).astype(q.dtype)
        weight = broadcast(self.self_weight[...][:, None], own.shape, own.dtype)
        return self.mlp(attention(q, k, v, **options) + weight * own)

    def finish(self, y: jax.Array) -> jax.Array:
        return y.reshape(*y.shape[:2], -1) if self.out is None else super().finish(y)
