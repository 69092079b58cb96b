"""The gradient of a parameter sums over all rows and tokens: in narrow dtypes, no part of the sum is lost.

All rows are equal here, and so are their gradients: a sum over thousands of them is that many times the gradient
of one row. Both come from one program, in which rows count by a weight: rounding is the same, adding up is all
that differs. A sum that is kept in bfloat16 stops growing at 256 equal terms, in float16 at 2,048.

Mixers are made of such layers and of parameters of their own. There the program of the gradients is read, not run: no
sum over rows may have a narrow result. Products are not such sums: they add up in float32 and round once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layers.convolution import CausalConvolution
from layers.depthwise import DepthwiseConv
from layers.drop import LayerScale
from layers.experts import MixtureOfExperts
from layers.initializers import truncated_normal
from layers.linear import Embed, Linear
from layers.making import abstract
from layers.mlp import MLP
from layers.norm import NORMS, create_norm
from layers.patch import ConvStem, PatchEmbed
from layers.state import flatten
from primitives.operations import scan_sizes
from tests.compilation import called
from tests.layers.gradients import WITHOUT_GRADIENT
from tests.layers.mixer_cases import FEATURES, FORMS, MixerCase, brings_parameters

ROWS, SCALE = 512, 1024.0
NARROW = (jnp.bfloat16, jnp.float16)
narrow = pytest.mark.parametrize(
    "dtype", [NARROW[0], pytest.param(NARROW[1], marks=pytest.mark.full)], ids=["bfloat16", "float16"]
)


def lost(module: nnx.Module, x: Any, rows: int = ROWS, scale: float = SCALE) -> dict[str, float]:
    """For each parameter, how far the gradient of many equal rows is from that of one, as a part of it; ``x`` is the
    row, (1, ...).
    """
    module.eval()
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    many = jax.tree.map(lambda x: np.broadcast_to(x, (rows, *x.shape[1:])), x)

    @jax.jit
    def gradient(params: Any, weight: np.ndarray) -> Any:
        def loss(params: Any) -> jax.Array:
            y = called(nnx.merge(graphdef, params, rest, copy=True), many)
            wide = y.astype(jnp.float32).reshape(rows, -1)
            return jnp.sum(weight * jnp.mean(wide * wide + wide, -1))

        return jax.grad(loss)(params)

    # Scaled as the training step scales losses in float16, where small gradients would be rounded away, and large ones
    # overflow.
    sums = gradient(params, np.full(rows, scale, np.float32))
    while scale > 1 and not all(np.isfinite(g).all() for g in jax.tree.leaves(sums)):
        scale /= 2
        sums = gradient(params, np.full(rows, scale, np.float32))
    one = gradient(params, np.where(np.arange(rows) == rows // 2, np.float32(scale), np.float32(0)))
    a, b = (
        {n: np.asarray(g, np.float64) for n, g in flatten(nnx.merge(graphdef, g, rest), nnx.Param).items()}
        for g in (sums, one)
    )
    return {
        n: float(np.linalg.norm(a[n] / rows - b[n]) / max(np.linalg.norm(b[n]), 1e-30))
        for n in a
        if not n.endswith(tuple(WITHOUT_GRADIENT))
    }


def assert_kept(module: nnx.Module, x: Any, rows: int = ROWS, scale: float = SCALE) -> None:
    bad = {name: error for name, error in lost(module, x, rows, scale).items() if not error < 0.01}
    assert not bad


# No length or number of features divides by it.
PRIME = 509
SUMS = frozenset(
    ["reduce_sum", "reduce", "scatter-add", "reduce_window", "reduce_window_sum", "select_and_scatter_add", "cumsum"]
)


def narrow_sums(jaxpr: Any) -> Iterator[str]:
    """Sums over rows, of which there are PRIME, that are kept in a narrow dtype; in a loop, all that are carried."""

    def of_rows(variable: Any) -> bool:
        return any(size and size % PRIME == 0 for size in getattr(variable.aval, "shape", ()))

    for equation in jaxpr.eqns:
        name, results = equation.primitive.name, equation.outvars
        if name == "scan":
            results = results[: scan_sizes(equation.params)[1]]
        if (name == "scan" or (name in SUMS and any(map(of_rows, equation.invars)))) and any(
            v.aval.dtype in NARROW and not of_rows(v) for v in results
        ):
            yield f"{name} of {[str(v.aval) for v in equation.invars]}"
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from narrow_sums(inner)


def read(module: nnx.Module, x: np.ndarray | jax.ShapeDtypeStruct) -> list[str]:
    """Narrow sums in the program of the gradients of ``module``, which may be abstract; ``x`` is a row, (1, ...)."""
    module.eval()
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)

    def loss(params: Any, rest: Any, x: jax.Array) -> jax.Array:
        wide = nnx.merge(graphdef, params, rest)(x).astype(jnp.float32)
        return jnp.mean(wide * wide + wide)

    many = jax.ShapeDtypeStruct((PRIME, *x.shape[1:]), x.dtype)
    return list(narrow_sums(jax.make_jaxpr(jax.grad(loss))(params, rest, many).jaxpr))


def row(case: MixerCase) -> np.ndarray:
    """Tokens that are more than a chunk, or a grid of several windows."""
    shape = (18,) if "sequence" in case.declared.layouts else (6, 5)
    return np.random.default_rng(0).standard_normal((1, *shape, FEATURES)).astype(np.float32)


@pytest.mark.full
@pytest.mark.parametrize("case", list(filter(brings_parameters, FORMS)), ids=str)
def test_mixers(case: MixerCase) -> None:
    assert read(abstract(functools.partial(case.build, dtype=jnp.bfloat16)), row(case)) == []


class Narrow(nnx.Module):
    """Parameters that become narrow too early."""

    def __init__(self, way: str):
        self.way, self.table = way, nnx.Param(np.ones((11, 8), np.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        table = self.table.astype(x.dtype)
        if self.way == "broadcast":
            return x * table[0]
        if self.way == "looked up":
            return table[jnp.argmax(x, -1)]
        if self.way == "row by row":
            return jax.lax.map(lambda tokens: tokens * table[0], x)
        return jax.lax.scan(lambda carry, token: (carry, token @ table.T), 0, x.swapaxes(0, 1))[1]


@pytest.mark.parametrize("way", ["broadcast", "looked up", "row by row", "token by token"])
def test_narrow_sums_are_found(way: str) -> None:
    assert read(Narrow(way), jax.ShapeDtypeStruct((1, 6, 8), jnp.bfloat16))
    assert read(Narrow(way), jax.ShapeDtypeStruct((1, 6, 8), jnp.float32)) == []


# Float16 keeps more of a sum than bfloat16, and less of a range: one of each way to mix shows what that does.
FLOAT16 = (
    "attention", "bilevel_routing", "focal_modulation", "mamba", "gated_delta_net", "neural_memory", "s4d",
)  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("case", [case for case in FORMS if case.quick and case.name in FLOAT16], ids=str)
def test_mixers_in_float16(case: MixerCase) -> None:
    assert_kept(case.make(dtype=jnp.float16), row(case))


IMAGE = np.random.default_rng(0).standard_normal((1, 6, 6, 8)).astype(np.float32)
TOKENS = np.arange(20, dtype=np.int32)[None] % 7


def _norm(name: str, dtype: Any, rngs: nnx.Rngs) -> nnx.Module:
    return create_norm(name, 8, dtype=dtype, rngs=rngs)


def _experts(form: Any, dtype: Any, rngs: nnx.Rngs) -> nnx.Module:
    """All experts of a token, so that rounding can't choose others; kernels whose gradients float16 can hold."""
    init = truncated_normal(0.5)
    return MixtureOfExperts(8, 4, num_experts=2, chosen=2, form=form, kernel_init=init, dtype=dtype, rngs=rngs)


class Tied(nnx.Module):
    """A table that is looked up and multiplied by."""

    def __init__(self, dtype: Any, rngs: nnx.Rngs):
        self.embedding = Embed(11, 8, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.embedding.attend(self.embedding(tokens))


LAYERS: dict[str, tuple[Callable[..., nnx.Module], np.ndarray]] = {
    "linear": (lambda dtype, rngs: Linear(8, 4, dtype=dtype, rngs=rngs), IMAGE),
    "embedding": (lambda dtype, rngs: Embed(11, 4, dtype=dtype, rngs=rngs), TOKENS),
    "tied": (Tied, TOKENS),
    "patches": (lambda dtype, rngs: PatchEmbed(2, 8, 4, dtype=dtype, rngs=rngs), IMAGE),
    "stem": (lambda dtype, rngs: ConvStem(8, (4, 4), dtype=dtype, rngs=rngs), IMAGE),
    "depthwise": (lambda dtype, rngs: DepthwiseConv(8, 3, dtype=dtype, rngs=rngs), IMAGE),
    "causal_convolution": (lambda dtype, rngs: CausalConvolution(8, dtype=dtype, rngs=rngs), IMAGE[:, 0]),
    "mlp": (lambda dtype, rngs: MLP(8, 16, dtype=dtype, rngs=rngs), IMAGE),
    **{f"experts_{form}": (functools.partial(_experts, form), IMAGE[:, 0]) for form in ("every", "blocks")},
    **{f"norm_{norm}": (functools.partial(_norm, norm), IMAGE) for norm in NORMS},
}


@narrow
@pytest.mark.parametrize(
    "param_dtype", [jnp.float32, pytest.param(None, marks=pytest.mark.full)], ids=["float32", "narrow"]
)
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, param_dtype: Any, dtype: Any) -> None:
    make, x = LAYERS[name]
    module = make(dtype=dtype, rngs=nnx.Rngs(0))
    if param_dtype is None:  # the sum is then rounded once, to the parameter's own dtype
        graphdef, state = nnx.split(module)
        module = nnx.merge(
            graphdef, jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, state)
        )
    assert_kept(
        module, x if x.dtype == np.int32 else x.astype(dtype), scale=SCALE if param_dtype else 1.0
    )  # float16 ends at 65,504


@narrow
def test_layer_scale(dtype: Any) -> None:
    assert_kept(LayerScale(8, 0.5, rngs=nnx.Rngs(0)), IMAGE.astype(dtype))


@narrow
def test_a_token_that_is_a_seventh_of_all(dtype: Any) -> None:
    """Tokens as in text: the commonest is 15 % of 65,536; against float64, every row of the table."""
    rng = np.random.default_rng(0)
    tokens = np.where(rng.random((64, 1024)) < 0.15, 3, rng.integers(0, 256, (64, 1024))).astype(np.int32)
    weight = jnp.asarray(rng.uniform(0.5, 1.5, (64, 1024, 8)), dtype)
    embed = Embed(256, 8, dtype=dtype, rngs=nnx.Rngs(0))
    gradient = jax.jit(nnx.grad(lambda embed: jnp.sum((embed(tokens) * weight).astype(jnp.float32))))(embed)[
        "embedding"
    ][...]
    right = np.zeros((256, 8))
    np.add.at(right, tokens.reshape(-1), np.asarray(weight, np.float64).reshape(-1, 8))
    np.testing.assert_allclose(gradient, right, rtol=1e-3)
