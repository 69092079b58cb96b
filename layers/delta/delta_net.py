"""The delta rule, whose memory is corrected rather than only added to: plain, gated, and with several steps per token.

    q, k, v = silu(conv(W x));  q, k normalized;  beta = sigmoid(W_b x), or twice that
    S <- exp(g_t) S                                        g = -A softplus(W_a x + b)
    S <- (I - beta_j k_j k_j^T) S + beta_j k_j v_j^T       j = 1 ... steps
    y_t = W_o (RMSNorm(q_t S) * silu(W_g x))

- ``DeltaNet``: one step, no decay, no gate. Parallelizing Linear Transformers with the Delta Rule over Sequence Length
  (Yang et al., 2024, arXiv:2406.06484).
- ``GatedDeltaNet``: one step, decay and gate. Gated Delta Networks (Yang, Kautz and Hatamizadeh, 2024,
  arXiv:2412.06464).
- ``DeltaProduct``: several steps, and beta in (0, 2), which reflects: DeltaProduct (Siems et al., 2025,
  arXiv:2502.10297). Products of n reflections include all rotations of n dimensions, as state tracking needs.
- ``Comba``: decay, a sigmoid gate, and a factor b of the keys with which the memory is read, for the correction and for
  the part subtracted from the query: S <- exp(g_t) S + beta k (v - b k^T S)^T, y_t = (q - d b k) S. Comba: Improving
  Bilinear RNNs with Closed-loop Control (Hu et al., 2025, arXiv:2506.02475).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Required, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from layers.broadcast import widened
from layers.convolution import CausalConvolution
from layers.delta.memory import correct, normalized
from layers.initializers import constant
from layers.linear import Linear
from layers.mixer import register_mixer
from layers.module import LayerOptions, parameter
from layers.norm import GatedRMSNorm
from layers.recurrent import Recurrent, RecurrentState
from layers.state_space.initialization import A_LOG, fan_in_uniform, step_bias
from layers.tokens import Tokens
from primitives.exponential import silu, softplus


@register_mixer("delta_net")
class DeltaNet(Recurrent):
    """The delta rule after short convolutions, with the options of the first three papers.

    Parameters: ``query``, ``key``, ``value``, ``beta``, ``out`` (linear), ``query_conv``, ``key_conv``, ``value_conv``,
    ``norm`` per head; ``decay`` (linear), ``A_log`` and ``dt_bias`` (value_heads,) with a decay; ``gate`` (linear) with
    a gate.
    """

    paper: ClassVar[tuple[int, ...]] = (179,)

    own_steps: ClassVar[int] = 1
    own_decay: ClassVar[bool] = False
    own_gate: ClassVar[bool] = False
    own_negative: ClassVar[bool] = False
    own_value_expansion: ClassVar[float] = 1.0
    activation: Callable[[jax.Array], jax.Array] = staticmethod(silu)  # activation of the gate

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        num_value_heads: int | None = None,
        head_dim: int | None = None,
        value_expansion: float | None = None,
        steps: int | None = None,
        use_decay: bool | None = None,
        use_gate: bool | None = None,
        negative: bool | None = None,
        conv_size: int | None = 4,
        conv_bias: bool = False,
        norm_epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads, head_dim: number of query and key heads, and their features; default features / num_heads.
          num_value_heads: number of value heads, each with its own memory; a multiple of num_heads, in groups that
            share queries and keys. Default num_heads.
          value_expansion: features of a value head / head_dim.
          steps: number of steps of the delta rule per token, each with its own key, value and beta.
          use_decay: whether memories have a data-dependent decay.
          use_gate: whether the output has a gate.
          negative: beta in (0, 2) instead of (0, 1): transitions with a negative eigenvalue (Grazzi et al., 2024,
            arXiv:2411.12537).
          conv_size, conv_bias: kernel size of the convolutions, None for no convolution, and whether they have biases.
          norm_epsilon: epsilon of the norm of each head's output.

        The default of value_expansion, steps, use_decay, use_gate and negative is that of the class.

        Raises:
          ValueError: heads that do not fit together, or a head size that is not a whole number.
        """
        if head_dim is None and features % num_heads:
            raise ValueError(
                f"{features} features can't be split over {num_heads} heads: give head_dim, or a number of heads that "
                f"divides it"
            )
        value_heads, head_dim = num_value_heads or num_heads, head_dim or features // num_heads
        value_dim = head_dim * (self.own_value_expansion if value_expansion is None else value_expansion)
        if value_heads % num_heads or value_dim != int(value_dim):
            raise ValueError(
                f"num_value_heads {value_heads} must be a multiple of num_heads {num_heads}, and {value_dim} features "
                f"of a value head a whole number"
            )
        self.steps = self.own_steps if steps is None else steps
        self.negative = self.own_negative if negative is None else negative
        self.num_heads, self.value_heads, self.head_dim, self.value_dim = (
            num_heads,
            value_heads,
            head_dim,
            int(value_dim),
        )
        keys, values = num_heads * head_dim, value_heads * self.value_dim
        common = {
            "use_bias": False,
            "kernel_init": fan_in_uniform(),
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.query = Linear(features, keys, **common)
        self.key = Linear(features, self.steps * keys, **common)
        self.value = Linear(features, self.steps * values, **common)
        self.beta = Linear(features, self.steps * value_heads, **common)
        convolution = {"use_bias": conv_bias, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.query_conv = CausalConvolution(keys, conv_size, **convolution) if conv_size else None
        self.key_conv = CausalConvolution(self.steps * keys, conv_size, **convolution) if conv_size else None
        self.value_conv = CausalConvolution(self.steps * values, conv_size, **convolution) if conv_size else None
        has_decay = self.own_decay if use_decay is None else use_decay
        self.decay = Linear(features, value_heads, **common) if has_decay else None
        if has_decay:
            self.A_log = nnx.Param(A_LOG(rngs.params(), (value_heads,), param_dtype))
            self.dt_bias = nnx.Param(step_bias()(rngs.params(), (value_heads,), param_dtype))
        self.gate = Linear(features, values, **common) if (self.own_gate if use_gate is None else use_gate) else None
        norm: dict[str, Any] = {"epsilon": norm_epsilon, "param_dtype": param_dtype, "rngs": rngs}
        self.norm = GatedRMSNorm(self.value_dim, gated="after", activation=self.activation, **norm)
        self.out = Linear(values, features, **common)

    @property
    def memory_shape(self) -> tuple[int, ...]:
        return self.value_heads, self.head_dim, self.value_dim

    @property
    def convolutions(self) -> tuple[CausalConvolution, ...]:
        return tuple(conv for conv in (self.query_conv, self.key_conv, self.value_conv) if conv is not None)

    def recur(
        self, x: jax.Array, tokens: Tokens, state: RecurrentState | None
    ) -> tuple[jax.Array, RecurrentState | None]:
        read, seen = self.convolve([linear(x) for linear in (self.query, self.key, self.value)], tokens, state)
        q, k, v = map(silu, read)
        batch, length = x.shape[:2]
        rows = length * self.steps
        q = q.reshape(batch, length, self.num_heads, self.head_dim)
        q, k, read_key = self.keys(q, k.reshape(batch, rows, self.num_heads, self.head_dim))
        v = v.reshape(batch, rows, self.value_heads, self.value_dim)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        beta = (2 if self.negative else 1) * jax.nn.sigmoid(self.beta(x).astype(wide))
        decay = None
        if self.decay is not None:
            decay = -jnp.exp(self.A_log[...].astype(wide)) * softplus(
                self.decay(x).astype(wide) + self.dt_bias[...].astype(wide)
            )
        beta = beta.reshape(batch, rows, self.value_heads)
        y, memory = correct(q, k, v, beta, decay, tokens, state, read_key=read_key)
        y = self.norm(y, None if self.gate is None else self.gate(x).reshape(y.shape))
        y = self.out(y.reshape(batch, length, -1))
        return y, state and state.after(tokens, memory=memory, convolutions=seen)

    def keys(self, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Unit-norm queries and keys, and the keys with which the memory is read, (..., heads, head_dim); None for the
        same keys.
        """
        return normalized(q), normalized(k), None


@register_mixer("gated_delta_net")
class GatedDeltaNet(DeltaNet):
    """The delta rule with a decay and an output gate."""

    paper = ()  # Gated Delta Networks is not in the roster
    own_decay = True
    own_gate = True
    own_value_expansion = 2.0


@register_mixer("delta_product")
class DeltaProduct(DeltaNet):
    """Two steps of the delta rule per token, with negative eigenvalues and an output gate; ``use_decay=True`` is Gated
    DeltaProduct.
    """

    paper = (148,)
    own_steps = 2
    own_gate = True
    own_negative = True
    own_value_expansion = 2.0


class DeltaOptions(LayerOptions, total=False):
    """Options of :class:`DeltaNet` that subclasses pass on."""

    num_heads: Required[int]
    head_dim: int | None
    value_expansion: float | None
    conv_size: int | None
    conv_bias: bool
    norm_epsilon: float


@register_mixer("comba")
class Comba(DeltaNet):
    """The gated delta rule with feedback of a learned strength per head, and queries corrected by the token's key.

    Parameters: those of :class:`DeltaNet`, and ``feedback`` and ``correction`` (heads,): b = sigmoid(feedback), d =
    correction.
    """

    paper = ()
    own_decay = True
    own_gate = True
    own_value_expansion = 2.0
    activation = staticmethod(jax.nn.sigmoid)

    def __init__(
        self,
        features: int,
        *,
        normalize_read: bool = False,
        correction: float = 1.0,
        **options: Unpack[DeltaOptions],
    ):
        """Args:
          normalize_read: the keys with which the memory is read also have norm 1, so that b affects only queries, and
            queries are normalized after their correction, as in flash-linear-attention; in the paper these keys have
            norm b.
          correction: initial value of d; the authors also mention 0.02, for small models.
          options: as in :class:`DeltaNet`.

        Raises:
          ValueError: heads that do not fit together, or a head size that is not a whole number.
        """
        super().__init__(features, **options)
        self.normalize_read = normalize_read
        self.feedback, self.correction = (
            parameter(constant(value), (self.num_heads,), options) for value in (1.0, correction)
        )

    def keys(self, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        share, correction = jax.nn.sigmoid(widened(self.feedback[...])), widened(self.correction[...])
        if not self.normalize_read:
            q, k = normalized(q), normalized(k)
        read = (k * share[:, None]).astype(k.dtype)
        q = (q - correction[:, None] * read).astype(q.dtype)
        return (normalized(q), normalized(k), normalized(read)) if self.normalize_read else (q, k, read)
