"""Class attention: Going deeper with Image Transformers (Touvron et al., 2021, arXiv:2103.17239), section 3.

    u = norm([c, x]);  c = c + s attention(u_c; u);  c = c + s mlp(norm(c))

Class tokens c attend to themselves and to the tokens x of the body, which do not change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.attention.multi_head import MultiHeadAttention
from layers.drop import LayerScale
from layers.mlp import MLP, gelu
from layers.module import Module
from layers.norm import Norm, create_norm
from layers.tokens import Tokens


class ClassBlock(Module):
    """A block of class attention and an MLP. Parts: ``mixer``, ``channel``, each with ``_norm`` and ``_scale``."""

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        mlp_ratio: float = 4.0,
        activation: Callable[[jax.Array], jax.Array] = gelu,
        norm: Norm = "layer",
        norm_epsilon: float = 1e-6,
        use_bias: bool = True,
        layer_scale: float | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        use_bias: biases of queries, keys and values.
        num_heads: heads of the class attention.
        mlp_ratio: hidden features of the MLP / features.
        activation: activation of the MLP.
        norm, norm_epsilon: norms of both branches.
        layer_scale: initial value of the per-feature factors of both branches, None for none.
        """
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        biases: dict[str, Any] = {"use_bias": use_bias, "out_bias": True}
        self.mixer_norm, self.channel_norm = (
            create_norm(norm, features, epsilon=norm_epsilon, **common) for _ in range(2)
        )
        self.mixer = MultiHeadAttention(features, num_heads=num_heads, context_features=features, **biases, **common)
        self.channel = MLP(features, int(features * mlp_ratio), activation=activation, **common)

        def scale() -> LayerScale | None:
            return (
                None if layer_scale is None else LayerScale(features, layer_scale, param_dtype=param_dtype, rngs=rngs)
            )

        self.mixer_scale, self.channel_scale = scale(), scale()

    def __call__(self, classes: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The class tokens (batch, count, features) after attending to themselves and to ``x`` (batch, length,
        features), and the tokens for the next block: here ``x``, unchanged.
        """
        seen = self.mixer_norm(jnp.concatenate([classes, x], 1))
        y = self.mixer(seen[:, : classes.shape[1]], Tokens(context=seen))
        classes = classes + (y if self.mixer_scale is None else self.mixer_scale(y))
        y = self.channel(self.channel_norm(classes))
        return classes + (y if self.channel_scale is None else self.channel_scale(y)), x
