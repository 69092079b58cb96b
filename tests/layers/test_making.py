"""Making models: parameters drawn by name, the same however the model is made; what is not drawn; two names for one
parameter.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from layers import BatchNorm, Dropout, DropPath, LayerNorm, Linear, Module, Statistic
from layers.initializers import Draw, normal, zeros
from layers.making import Unfinished, abstract, make
from layers.state import assign, flatten


class Tower(Module):
    """Layers of this library, of Flax, and a parameter that is computed with."""

    def __init__(self, *, rngs: nnx.Rngs, foreign_first: bool = False):
        if foreign_first:
            self.foreign = nnx.Conv(2, 3, (3,), rngs=rngs)
        self.first = Linear(3, 4, kernel_init=normal(1.0), rngs=rngs)
        self.norms = nnx.List([LayerNorm(4, rngs=rngs), BatchNorm(4, rngs=rngs)])
        self.drop = DropPath(0.5, rngs=rngs)
        self.last = Linear(4, 4, kernel_init=normal(1.0), bias_init=normal(1.0), param_dtype=jnp.bfloat16, rngs=rngs)
        if not foreign_first:
            self.foreign = nnx.Conv(2, 3, (3,), rngs=rngs)
            self.doubled = nnx.Param(2 * normal(1.0)(rngs.params(), (3, 5)))


def build(rngs: nnx.Rngs) -> Tower:
    return Tower(rngs=rngs)


def arrays(model: nnx.Module) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in flatten(model).items()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray], *but: str) -> bool:
    assert a.keys() - set(but) == b.keys() - set(but)
    return all(np.array_equal(a[name], b[name]) for name in a if name not in but)


def test_a_model_is_a_function_of_its_seed_and_names() -> None:
    made = make(build, nnx.Rngs(0))
    whole = arrays(made)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(nnx.state(made)))
    assert {str(leaf.dtype) for leaf in flatten(made).values()} == {"float32", "bfloat16"}
    assert same(whole, arrays(make(build, nnx.Rngs(0))))
    other = arrays(make(build, nnx.Rngs(1)))
    assert not any(
        np.array_equal(whole[name], other[name])
        for name in ("first.kernel", "last.kernel", "foreign.kernel", "doubled")
    )
    # Our layers' parameters do not depend on what was made before them.
    moved = arrays(make(lambda rngs: Tower(rngs=rngs, foreign_first=True), nnx.Rngs(0)))
    assert same(whole, moved, "foreign.kernel", "doubled")
    np.testing.assert_array_equal(whole["norms.0.scale"], 1)
    np.testing.assert_array_equal(whole["norms.1.mean"], 0)
    assert 0.3 < np.std(whole["foreign.kernel"]) / (1 / 6) ** 0.5 < 2


def test_two_models_of_one_stream_differ() -> None:
    rngs = nnx.Rngs(0)
    one, two = arrays(make(build, rngs)), arrays(make(build, rngs))
    assert same(one, arrays(make(build, nnx.Rngs(0))))
    assert not np.array_equal(one["first.kernel"], two["first.kernel"])
    assert rngs.default.count[...] == 2


def test_under_jit_the_model_is_the_same() -> None:
    whole = arrays(make(build, nnx.Rngs(5)))
    inside = jax.jit(lambda: flatten(make(build, nnx.Rngs(5))))()
    assert same(whole, {name: np.asarray(leaf) for name, leaf in inside.items()})
    traced = jax.jit(lambda seed: flatten(make(build, nnx.Rngs(seed))))(jax.random.key(5))
    assert same(whole, {name: np.asarray(leaf) for name, leaf in traced.items()})
    assert jax.tree.map(jnp.shape, flatten(nnx.eval_shape(lambda: make(build, nnx.Rngs(5))))) == jax.tree.map(
        np.shape, whole
    )


def test_layers_inside_a_function_that_the_model_has_transformed() -> None:
    class Stacked(Module):
        def __init__(self, rngs: nnx.Rngs):
            split = nnx.split_rngs(splits=3)
            self.layers = split(nnx.vmap(lambda rngs: Linear(2, 2, rngs=rngs), in_axes=(0,), out_axes=0))(
                nnx.Rngs(params=rngs.params())
            )
            self.own = Linear(2, 2, rngs=rngs)

    model = make(lambda rngs: Stacked(rngs), nnx.Rngs(0))
    kernels = np.asarray(model.layers.kernel[...])
    assert kernels.shape == (3, 2, 2)
    assert len(np.unique(kernels)) == 12


def test_nothing_compiles_for_a_size(caplog: pytest.LogCaptureFixture) -> None:
    """What the first model of a process compiles (scalars, a norm of one feature) serves all sizes."""

    def made(rows: int, columns: int) -> nnx.Module:
        return make(
            lambda rngs: nnx.List(
                [Linear(rows, columns, rngs=rngs), BatchNorm(columns, rngs=rngs), DropPath(0.1, rngs=rngs)]
            ),
            nnx.Rngs(0),
        )

    made(2, 3)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        module = made(11, 17)
    assert flatten(module)["0.kernel"].shape == (11, 17)
    assert "ompil" not in caplog.text


def test_what_gets_an_array_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    numbers = Draw.numbers
    monkeypatch.setattr(
        Draw, "numbers", lambda self, seed, name, *index: (drawn.append(name), numbers(self, seed, name, *index))[1]
    )
    unfinished = Unfinished(lambda rngs: nnx.List([Linear(2, 2, rngs=rngs)]), nnx.Rngs(0))
    assert not drawn
    assign(unfinished.model, {"0.kernel": jnp.ones((2, 2))})
    model = unfinished.finish()
    assert drawn == ["0.bias"]
    np.testing.assert_array_equal(model[0].kernel[...], 1)


def test_abstract_models() -> None:
    model = abstract(build)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(nnx.state(model)))
    told = {name: (leaf.shape, leaf.dtype) for name, leaf in flatten(model).items()}
    assert told == {name: (leaf.shape, leaf.dtype) for name, leaf in flatten(make(build, nnx.Rngs(0))).items()}


def test_sharded_models() -> None:
    mesh = Mesh(np.asarray(jax.devices()[:1]), ("x",))
    split = NamedSharding(mesh, PartitionSpec("x"))
    model = make(build, nnx.Rngs(0), lambda model: {"first.kernel": split, "last.kernel": split})
    assert same(arrays(model), arrays(make(build, nnx.Rngs(0))))
    assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(nnx.state(model)))


@pytest.mark.parametrize("share", ["parameter", "module", "statistic"])
def test_a_parameter_has_one_name(share: str) -> None:
    class Twice(Module):
        def __init__(self, rngs: nnx.Rngs):
            self.a = Linear(2, 2, rngs=rngs)
            self.b = Linear(2, 2, rngs=rngs)
            if share == "parameter":
                self.b.kernel = self.a.kernel
            elif share == "module":
                self.b = self.a
            else:
                self.c = self.d = Statistic(zeros(None, (2,)))

    names = {"parameter": "a.kernel and b.kernel", "module": "a.kernel and b.kernel", "statistic": "c and d"}
    with pytest.raises(ValueError, match=f"{names[share]} are one parameter: a parameter has one name"):
        make(lambda rngs: Twice(rngs), nnx.Rngs(0))


def test_streams_that_modules_share_are_no_parameters() -> None:
    class Shared(Module):
        def __init__(self, rngs: nnx.Rngs):
            self.a, self.b = Dropout(0.5, rngs=rngs), Dropout(0.5, rngs=rngs)
            self.b.rngs = self.a.rngs

    make(lambda rngs: Shared(rngs), nnx.Rngs(0))
