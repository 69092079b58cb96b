"""Mixtures of experts: Outrageously Large Neural Networks (Shazeer et al., 2017, arXiv:1701.06538), as the channel
mixer of a decoder block.

    y = sum over the K chosen experts of g_e E_e(x)  +  the shared experts of x          E_e(x) = W2 (silu(W1 x) * V x)

The router chooses the experts of each token and their weights g, in float32:

    softmax    s = softmax(W_r x);  the K largest;  g = s, or s / sum of the chosen s
               Jamba (arXiv:2403.19887); the second is Mixtral's (arXiv:2401.04088)
    sigmoid    s = sigmoid(W_r x);  the K largest of s + b, within the groups of experts whose two largest sum up to
               most;  g = scale s / sum of the chosen s
               DeepSeek-V3 (arXiv:2412.19437), eq. 12 to 16, whose b is no parameter: after each training step that of
               an expert with more than its share of tokens falls, and that of the others rises; Kimi Linear

No token is dropped, whatever the experts' loads. Many tokens are sorted by expert, into blocks of a single expert each;
for few tokens, or few small experts, applying all experts to all tokens is faster. On one CPU core, 256 tokens of 1,024
features with 8 of 64 experts of 512 hidden features each take 240 ms in blocks, 620 ms in a loop over the experts and
1,400 ms if all experts are one product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from layers.drop import Dropout
from layers.initializers import truncated_normal, zeros
from layers.linear import Linear
from layers.mixer import Mixer, finite_padding
from layers.mlp import GatedMLP
from layers.module import AuxLoss, Diagnostic, Module, Statistic
from layers.tokens import Tokens
from primitives.exponential import silu
from primitives.grouped import grouped_product

Scores = Literal["softmax", "sigmoid"]
Form = Literal["every", "blocks"]
FEW = 1 << 24
"""Number of multiplications up to which applying all experts to all tokens is faster than sorting the tokens."""
ROWS = 8, 128
"""Minimum and maximum number of rows of a block."""


class ExpertLinear(Module):
    """One weight matrix per expert. Parameter: ``kernel`` (num_experts, in_features, out_features)."""

    def __init__(
        self,
        num_experts: int,
        in_features: int,
        out_features: int,
        *,
        kernel_init: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (num_experts, in_features, out_features), param_dtype))


class Experts(Module):
    """Gated MLPs, each applied to the tokens routed to it.

    Parameters: ``gate``, ``up``, ``down`` (:class:`ExpertLinear`).
    """

    sharding: ClassVar[Mapping[str, tuple[str | None, ...]]] = {
        "gate.kernel": (None, None, "tensor"),
        "up.kernel": (None, None, "tensor"),
        "down.kernel": (None, "tensor", None),
    }

    def __init__(
        self,
        num_experts: int,
        features: int,
        hidden: int,
        *,
        activation: Callable[[jax.Array], jax.Array],
        form: Form | None,
        **options: Any,
    ):
        """Args: as of :class:`MixtureOfExperts`; ``options`` of :class:`ExpertLinear`."""
        self.gate, self.up = (ExpertLinear(num_experts, features, hidden, **options) for _ in range(2))
        self.down = ExpertLinear(num_experts, hidden, features, **options)
        self.num_experts, self.activation, self.form = num_experts, activation, form

    def __call__(self, rows: jax.Array, weights: jax.Array, chosen: jax.Array) -> jax.Array:
        """The weighted sums (rows, features) of the outputs of the ``chosen`` experts (rows, K) for ``rows`` (rows,
        features), with float32 ``weights`` (rows, K).
        """
        # The number of tokens of an exported model may be symbolic.
        few = isinstance(rows.shape[0], int) and rows.shape[0] * 3 * self.gate.kernel.size <= FEW
        every = few if self.form is None else self.form == "every"
        return (self._by_every if every else self._by_blocks)(rows, weights, chosen)

    def _by_every(self, rows: jax.Array, weights: jax.Array, chosen: jax.Array) -> jax.Array:
        """All experts see all tokens; experts that were not chosen have the weight 0."""
        gate, up, down = (part.kernel[...].astype(rows.dtype) for part in (self.gate, self.up, self.down))
        hits = jax.nn.one_hot(chosen, self.num_experts, dtype=jnp.float32)
        shares = jnp.sum(weights[..., None] * hits, axis=1).astype(rows.dtype)
        # Products without a batch axis: on CPU, jax 0.12 accumulates batched ones in the narrow dtype of their
        # operands.
        gate, up = (kernel.swapaxes(0, 1).reshape(kernel.shape[1], -1) for kernel in (gate, up))
        h = self.activation(rows @ gate) * (rows @ up)
        h = jnp.repeat(shares, h.shape[1] // self.num_experts, axis=1) * h
        return h @ down.reshape(-1, down.shape[2])

    def _by_blocks(self, rows: jax.Array, weights: jax.Array, chosen: jax.Array) -> jax.Array:
        """Tokens sorted by expert, in blocks of one expert each; the last block of an expert may not be full."""
        (length, count), experts = chosen.shape, self.num_experts
        known, choices = isinstance(length, int), length * count
        # The largest power of two not above the mean number of choices per expert.
        size = min(max(1 << max(choices // experts, 1).bit_length() - 1, ROWS[0]), ROWS[1]) if known else 32
        blocks = choices // size + (min(experts, choices) if known else experts)
        expert = chosen.reshape(-1)
        order = jnp.argsort(expert, stable=True)
        own = jnp.bincount(expert, length=experts)
        ends = jnp.cumsum(-(-own // size))
        # For the sorted choices: the first row of the expert's blocks, minus the index of the expert's first choice.
        first = (ends - -(-own // size)) * size - (jnp.cumsum(own) - own)
        place = first[expert[order]] + jnp.arange(choices)
        token = jnp.full((blocks * size,), length, jnp.int32).at[place].set(order // count)
        group = jnp.minimum(jnp.searchsorted(ends, jnp.arange(blocks), side="right"), experts - 1)
        read = jnp.asarray(rows).at[token].get(mode="fill", fill_value=0).reshape(blocks, size, -1)
        gate, up = (grouped_product(read, part.kernel[...], group) for part in (self.gate, self.up))
        y = grouped_product(self.activation(gate) * up, self.down.kernel[...], group).reshape(blocks * size, -1)
        back = jnp.zeros((choices,), place.dtype).at[order].set(place)
        y = y[back].reshape(length, count, -1)
        return jnp.einsum("tkd,tk->td", y, weights, preferred_element_type=jnp.float32).astype(rows.dtype)


class MixtureOfExperts(Mixer):
    """A mixture of gated MLPs, of which each token uses a few; it replaces the MLP of a block.

    Each token is mapped independently, as by an MLP; this is a mixer only so that it knows the padding, which the loss
    and the loads leave out. It sows the loss ``load_balance``, E sum_e (share of the tokens that choose e) (mean score
    of e, with scores normalized to sum to 1) over the E experts, which is K under uniform routing (DeepSeek-V3, eq. 17,
    times K, over a batch); the diagnostics ``chosen`` (batch, ..., K), the experts of each token, and ``load`` (E,),
    the share of all choices that each expert gets.

    Parameters: ``router`` (linear, no bias), ``experts`` (:class:`Experts`), ``shared`` (gated MLP). Statistic:
    ``correction`` (num_experts,), b.
    """

    supports_causal = True
    takes_positions = True
    layouts = ("sequence", "grid", "image")
    honors = frozenset({"mask", "positions", "segment_ids", "roles"})
    aux_losses: ClassVar[Mapping[str, float]] = {"load_balance": 0.001}

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        num_experts: int,
        chosen: int = 2,
        scores: Scores = "softmax",
        normalized: bool = False,
        scale: float = 1.0,
        corrected: bool = False,
        correction_rate: float = 0.001,
        groups: int = 1,
        chosen_groups: int | None = None,
        shared: int = 0,
        activation: Callable[[jax.Array], jax.Array] = silu,
        form: Form | None = None,
        depth: int = 1,
        causal: bool = True,
        dropout: float = 0.0,
        kernel_init: Any = truncated_normal(0.02),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          hidden: hidden width of an expert.
          num_experts, chosen: E, and K, the number of experts per token.
          scores: "softmax" or "sigmoid", the function that maps router logits to scores.
          normalized: the weights of the chosen experts are divided by their sum.
          scale: factor of the weights.
          corrected: experts are chosen by scores plus a correction, which training updates by ``correction_rate`` a
            step.
          groups, chosen_groups: number of groups of experts, and how many of them, the best, a token chooses from; None
            for all.
          shared: number of shared experts, which are one MLP of their total hidden width, applied to all tokens.
          activation: activation of the experts.
          form: "every" applies all experts to all tokens, "blocks" sorts the tokens by expert; None picks for each call
            the one that is likely faster. The result is the same.
          depth: number of blocks of the model, over which the loss is averaged.
          dropout: rate of the dropout on the output.

        Raises:
          ValueError: more chosen experts or groups than there are, groups of unequal size or of one expert, unknown
            scores, or an unknown form.
        """
        chosen_groups = groups if chosen_groups is None else chosen_groups
        if scores not in ("softmax", "sigmoid") or form not in (None, "every", "blocks"):
            raise ValueError(
                f'scores is "softmax" or "sigmoid", form "every", "blocks" or None; got {scores!r} and {form!r}'
            )
        size = num_experts // groups
        if num_experts % groups or (groups > 1 and size < 2) or not 1 <= chosen_groups <= groups:
            raise ValueError(
                f"{chosen_groups} of {groups} groups of {num_experts} experts can't be chosen: give groups of equal "
                f"size with two experts or more, and chosen_groups up to their number"
            )
        if not 1 <= chosen <= chosen_groups * size:
            raise ValueError(f"of {chosen_groups * size} experts {chosen} can't be chosen: give chosen= up to that")
        self.num_experts, self.chosen, self.scores = num_experts, chosen, scores
        self.normalized, self.scale, self.groups, self.chosen_groups = normalized, scale, groups, chosen_groups
        self.depth, self.causal, self.dtype = depth, causal, dtype
        self.correction_rate, self.use_running_average = correction_rate, False
        common: dict[str, Any] = {"kernel_init": kernel_init, "param_dtype": param_dtype, "rngs": rngs}
        self.router = Linear(features, num_experts, use_bias=False, **{**common, "dtype": jnp.float32})
        self.correction = Statistic(zeros(rngs.params(), (num_experts,), jnp.float32)) if corrected else None
        options = {"activation": activation, "form": form, **common}
        self.experts = Experts(num_experts, features, hidden, **options)
        options = {"activation": activation, "dtype": dtype, **common}
        self.shared = GatedMLP(features, shared * hidden, **options) if shared else None
        self.dropout = Dropout(dropout, rngs=rngs) if dropout else None

    @property
    def complexity(self) -> float:
        return 1.0

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> tuple[()]:
        """An empty state: tokens do not interact."""
        return ()

    def mix_next(self, x: jax.Array, state: tuple[()], tokens: Tokens) -> tuple[jax.Array, tuple[()]]:
        return self.mix(x, tokens), state

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        x = finite_padding(x, tokens.mask)
        x = x.astype(self.dtype or jnp.promote_types(x.dtype, self.experts.gate.kernel.dtype))
        rows = x.reshape(-1, x.shape[-1])
        weights, chosen, scores = self.route(rows)
        self._report(chosen, scores, x.shape[:-1], tokens.mask)
        y = self.experts(rows, weights, chosen).reshape(x.shape)
        y = y if self.shared is None else y + self.shared(x)
        return y if self.dropout is None else self.dropout(y)

    def route(self, rows: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Routes tokens (rows, features).

        Returns:
          Weights of the chosen experts, float32 (rows, chosen), the experts, int32 (rows, chosen), and the scores of
          all, float32 (rows, num_experts).
        """
        logits = self.router(rows.astype(jnp.float32))
        scores = jax.nn.softmax(logits) if self.scores == "softmax" else jax.nn.sigmoid(logits)
        ranked = scores if self.correction is None else scores + self.correction[...]
        if self.chosen_groups < self.groups:
            grouped = ranked.reshape(rows.shape[0], self.groups, -1)
            best = jnp.sum(jax.lax.top_k(grouped, 2)[0], axis=-1)
            kept = _hits(jax.lax.top_k(best, self.chosen_groups)[1], self.groups)
            ranked = jnp.where(kept[..., None], grouped, -jnp.inf).reshape(ranked.shape)
        chosen = jax.lax.top_k(jax.lax.stop_gradient(ranked), self.chosen)[1]
        weights = jnp.take_along_axis(scores, chosen, axis=-1)
        if self.normalized:
            weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + 1e-20)
        return self.scale * weights, chosen, scores

    def _report(self, chosen: jax.Array, scores: jax.Array, shape: tuple[int, ...], mask: jax.Array | None) -> None:
        """Sows the loss and the loads, and updates the correction in training."""
        self.sow(Diagnostic, "chosen", chosen.reshape(*shape, -1))
        follows = self.correction is not None and not self.use_running_average
        balances, explains = self.sowing(AuxLoss, "load_balance"), self.sowing(Diagnostic, "load")
        if not (follows or balances or explains):
            return
        real = jnp.ones(chosen.shape[0], jnp.float32) if mask is None else mask.reshape(-1).astype(jnp.float32)
        share = real / jnp.maximum(jnp.sum(real), 1)
        used = jnp.einsum("t,te->e", share, _hits(chosen, self.num_experts).astype(jnp.float32))
        self.sow(Diagnostic, "load", used / self.chosen)
        if balances:
            mean = jnp.einsum("t,te->e", share, scores / jnp.sum(scores, axis=-1, keepdims=True))
            self.sow(AuxLoss, "load_balance", self.num_experts * jnp.sum(mean * used) / self.depth)
        if follows and self.correction is not None:
            step = self.correction_rate * jnp.sign(self.chosen / self.num_experts - used)
            self.correction[...] = self.correction[...] + jnp.where(jnp.sum(real) > 0, step, 0)


def _hits(chosen: jax.Array, of: int) -> jax.Array:
    """Bool (rows, of): whether each is among the ``chosen`` (rows, ...)."""
    return jnp.any(jax.nn.one_hot(chosen, of, dtype=bool), axis=-2)
