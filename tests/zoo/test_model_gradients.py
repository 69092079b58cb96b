"""Training passes and derivatives of every registered architecture, in a tiny variant of each family."""

from __future__ import annotations

import contextlib
import functools
import unittest.mock
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import Jaxpr, Var
from jax.interpreters.partial_eval import dce_jaxpr

from layers import Statistic, flatten
from layers.drop import DropPath, LayerScale
from layers.state import flatten_state
from tests.compilation import called
from tests.layers.gradients import CHOOSING
from tests.layers.mixer_cases import FORMS, relative
from tests.layers.test_gradient_sums import LAYERS, assert_kept
from tests.tiers import tiered
from tests.zoo.families import (
    BACKBONES,
    FAMILIES,
    IMAGE_FAMILIES,
    OWNERS,
    PARTS,
    POINTERS,
    inputs,
    least,
    make,
    one_stage,
    tiny,
)
from zoo.backbones.causal import Causal
from zoo.backbones.pyramid import Pyramid


def training_pass(family: str, form: tuple[str, ...], **sizes: Any) -> tuple[Any, nnx.State, nnx.State]:
    """A training pass with dropout, and the parameters and the rest that it takes: it returns the gradient, the output,
    and the rest afterwards.
    """
    drops = {"dropout": 0.2, **({} if family in POINTERS else {"drop_path": 0.3})}  # they have no branches to drop
    model = make(family, **drops, **sizes, **dict.fromkeys(form, True))
    for _, module in nnx.iter_modules(model):
        if isinstance(module, DropPath):
            module.rate[...] = 0.3  # of a single block too, which is the first, and would always be there
    model.train()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    x = inputs(family, 16, batch=6)  # stochastic depth leaves some of them in every block

    def step(params: nnx.State, rest: nnx.State) -> Any:
        def loss(params: nnx.State) -> Any:
            model = nnx.merge(graphdef, params, rest, copy=True)
            y = called(model, x)
            return jnp.sum(y**2), (y, nnx.state(model, nnx.Not(nnx.Param)))

        return jax.grad(loss, has_aux=True)(params)

    return jax.jit(step), params, rest


MISSING = object()


@contextlib.contextmanager
def whole_values_assigned() -> Iterator[None]:
    """Fails where a traced pass assigns ``variable[...] = value`` as Flax does: see :class:`layers.Statistic`."""
    set_value = nnx.Variable.set_value

    def checked(self: Any, value: Any, *, index: Any = MISSING) -> None:
        assert index is not ..., f"{self.type.__name__}[...] is assigned: use set_value(), or layers.Statistic"
        set_value(self, value) if index is MISSING else set_value(self, value, index=index)

    with unittest.mock.patch.object(nnx.Variable, "set_value", checked):
        yield


@functools.cache
def training_step(family: str, form: tuple[str, ...], **sizes: Any) -> tuple[Any, ...]:
    """Outputs of two training passes with dropout, the gradient, and the statistics afterwards."""
    step, params, rest = training_pass(family, form, **sizes)
    with whole_values_assigned():
        gradient, (y, rest) = step(params, rest)
    _, (again, rest) = step(params, rest)
    return y, again, flatten_state(gradient), flatten_state(nnx.filter_state(rest, Statistic))


def depending(jaxpr: Jaxpr, given: Iterable[bool]) -> list[bool]:
    """Which results of a program depend on those of its inputs that are ``given``, a part of it being one step."""
    found = {variable for variable, known in zip(jaxpr.invars, given, strict=True) if known}
    for step in jaxpr.eqns:
        if any(isinstance(variable, Var) and variable in found for variable in step.invars):
            found.update(step.outvars)
    return [isinstance(variable, Var) and variable in found for variable in jaxpr.outvars]


@pytest.mark.parametrize("family", PARTS)
def test_training_mode_is_random_and_reaches_every_parameter(family: str) -> None:
    """In the smallest form that has all kinds of parameters: test_every_parameter_is_used has the larger one. With
    numbers in one family of each backbone; the others' program is traced: a gradient that is always zero depends on
    nothing.
    """
    if family in BACKBONES.values():
        y, again, gradient, _ = training_step(family, (), **least(family))
        assert relative(again, y) > 1e-3
        assert all(np.isfinite(g).all() for g in gradient.values())
        assert [name for name, g in gradient.items() if not np.abs(g).max() > 0] == []
        return
    step, params, rest = training_pass(family, (), **least(family))
    traced = step.trace(params, rest)

    def results(of: type[nnx.Variable[Any]]) -> Any:
        given = jax.tree.map(
            lambda leaf: isinstance(leaf, of), (params, rest), is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)
        )
        return jax.tree.unflatten(traced.out_tree, depending(traced.jaxpr.jaxpr, jax.tree.leaves(given)))

    assert results(nnx.RngState)[1][0], "no dropout"
    gradient, _ = results(nnx.Variable)
    missed = [name for name, reached in flatten_state(gradient).items() if not reached]
    assert [name for name in missed if not name.endswith(CHOOSING)] == []


@pytest.mark.full
@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_used(family: str) -> None:
    """Of every block and stage, in evaluation mode."""
    graphdef, params, rest = nnx.split(tiny(family), nnx.Param, ...)
    x = inputs(family, 16)
    jaxpr = jax.make_jaxpr(lambda params: called(nnx.merge(graphdef, params, rest, copy=True), x))(params)
    _, used = dce_jaxpr(jaxpr.jaxpr, [True])
    used = flatten_state(jax.tree.unflatten(jax.tree.structure(params), used))
    assert [name for name, needed in used.items() if not needed] == []


@pytest.mark.full
@pytest.mark.parametrize("family", PARTS)
def test_scan_and_remat_change_nothing(family: str) -> None:
    """Outputs, gradients and statistics, in a decoder, in one that reads a context, and where blocks have statistics or
    are given more than tokens. The other families' blocks are the same functions in a scan, which are traced;
    tests/layers/test_stack.py has the numbers of a stack, the norms' statistics, and each form alone.
    """
    form, model = ("scan", "remat"), tiny(family)
    sizes = one_stage(family, 2) if isinstance(model, Pyramid) else {}
    more = isinstance(model, Causal) and (model.per_block() is not None or flatten(model, Statistic))
    if family not in ("transformer", "t5") and not more:
        step, params, rest = training_pass(family, form, **sizes)
        traced = step.trace(params, rest)
        gradient, (_, after) = traced.out_info
        shapes = functools.partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
        assert shapes(gradient) == shapes(params)
        assert shapes(after) == shapes(rest)
        return
    y, again, gradient, statistics = training_step(family, (), **sizes)
    other_y, other_again, other_gradient, other_statistics = training_step(family, form, **sizes)
    assert relative(other_y, y) < 1e-5
    assert relative(other_again, again) < 1e-5
    assert other_gradient.keys() == gradient.keys()
    scale = max(float(np.abs(g).max()) for g in gradient.values())
    assert all(
        np.abs(np.asarray(other_gradient[name]) - np.asarray(g)).max() < 1e-5 * scale for name, g in gradient.items()
    )
    assert other_statistics.keys() == statistics.keys()
    for name, value in statistics.items():
        np.testing.assert_allclose(other_statistics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


# tests/primitives/test_differentiation.py has the numbers of every op.
WITH_NUMBERS = (*BACKBONES.values(), "s4d")


@pytest.mark.parametrize("family", tiered(PARTS, ("s4d", "transformer").__contains__))
def test_forward_mode(family: str) -> None:
    """Every family has derivatives along a direction of parameters and input, of its output and of its gradient. In one
    family of each backbone, and one of complex numbers, they are computed, and are those of the gradient; in the others
    they are traced.
    """
    model, x = make(family, **least(family)), inputs(family, 16)
    model.eval()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    image = family in IMAGE_FAMILIES
    at = {"params": params, **({"x": jnp.asarray(x)} if image else {})}
    rng = np.random.default_rng(0)

    def way() -> Any:
        def like(leaf: jax.Array) -> jax.Array:
            return jnp.asarray(rng.standard_normal(leaf.shape) * np.std(np.asarray(leaf)), leaf.dtype)

        return jax.tree.map(like, at)

    def predict(at: Any) -> jax.Array:
        return called(nnx.merge(graphdef, at["params"], rest), at.get("x", x))

    def loss(at: Any) -> jax.Array:
        return jnp.mean(predict(at) ** 2)

    @jax.jit
    def derivatives(at: Any, way: Any) -> Any:
        """The change of the loss along a way by forward mode, the gradient, and its change."""
        out, change = jax.jvp(predict, (at,), (way,))
        return 2 * jnp.mean(out * change), *jax.jvp(jax.grad(loss), (at,), (way,))

    if family not in WITH_NUMBERS:
        _, gradient, change = jax.eval_shape(derivatives, at, at)
        assert change == gradient == jax.eval_shape(lambda at: at, at)
        return

    def inner(a: Any, b: Any) -> float:
        return sum(float(np.vdot(x, y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))

    ways = [way(), way()]
    (forward, slope, curved), (_, _, other) = (derivatives(at, way) for way in ways)
    assert abs(forward - inner(slope, ways[0])) < 1e-3 * abs(inner(slope, ways[0]))
    assert abs(inner(curved, ways[1]) - inner(other, ways[0])) < 1e-3 * abs(inner(other, ways[0]))
    assert inner(curved, curved) > 0


def owned(module: nnx.Module) -> set[tuple[type, str]]:
    """Its parameters, by the class whose constructor makes them, or that of a class below it, and their name there."""
    parts = [part for _, part in nnx.iter_modules(module)]
    makers = [next(cls for cls in type(part).__mro__ if "__init__" in vars(cls)) for part in parts]
    return {
        (maker, name)
        for maker, part in zip(makers, parts, strict=True)
        for name, own in vars(part).items()
        if isinstance(own, nnx.Param)
    }


@pytest.mark.full
def test_sums_over_rows_are_of_all_parameters() -> None:
    layers = [make(dtype=None, rngs=nnx.Rngs(0)) for make, _ in LAYERS.values()]
    layers += [LayerScale(8, 0.5, rngs=nnx.Rngs(0)), *(case.declared for case in FORMS), *map(tiny, OWNERS)]
    known = set().union(*map(owned, layers))
    assert not {family: new for family in FAMILIES if (new := owned(tiny(family)) - known)}


@pytest.mark.full
@pytest.mark.parametrize(
    ("family", "dtype", "rows"),
    [*((family, "bfloat16", 512) for family in OWNERS), ("bert", "float16", 2304), ("vit", "float16", 2304)],
)
def test_gradients_keep_the_sum_over_many_rows(family: str, dtype: str, rows: int) -> None:
    """Tables, biases, scales, positions, tokens, tied heads: see tests/layers/test_gradient_sums.py."""
    model, x = make(family, dtype=dtype, **least(family)), inputs(family, 16, batch=1)
    if family == "rwkv7":  # the channel mixer alone has what no mixer has
        model, x = model.blocks[0].channel, np.random.default_rng(0).standard_normal((1, 16, 16)).astype(jnp.bfloat16)
    assert_kept(model, x, rows, scale=1024.0)
