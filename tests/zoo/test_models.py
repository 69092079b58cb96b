"""Every registered architecture, in a tiny variant of each family, keeps the contract of its backbone."""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from layers import assign, flatten
from layers.state import parameter_count
from tests.compilation import called
from tests.layers.mixer_cases import relative
from tests.tiers import tiered
from tests.zoo.families import (
    BACKBONES,
    IMAGE_FAMILIES,
    OF_KNOWN_PARTS,
    OWNERS,
    PARTS,
    POINTERS,
    SERIES,
    VARIANTS,
    classifiers,
    counted_from_two,
    every,
    images,
    inputs,
    least,
    make,
    modules,
    of_new_parts,
    outline,
    run,
    shallow,
    smallest,
    tiny,
)
from training import optimizer as optimizers
from zoo.backbones.pyramid import Pyramid
from zoo.registry import abstract
from zoo.weights import export


@pytest.mark.parametrize("family", OF_KNOWN_PARTS)
def test_other_families_have_its_parts(family: str) -> None:
    assert modules(family) <= set().union(*map(modules, PARTS))


@pytest.mark.parametrize("family", BACKBONES.values())
def test_forward(family: str) -> None:
    """At its own size; the others run beside what they are compared with, and where they generate."""
    x = inputs(family)
    y = run(tiny(family), x)
    assert y.dtype == jnp.float32
    assert np.isfinite(y).all()
    assert np.std(y) > 0
    if family in IMAGE_FAMILIES:
        assert y.shape == (2, 5)


@images
def test_features_are_maps(family: str) -> None:
    model = tiny(family)
    size = 48  # another than its own, which test_reset_head has
    maps = jax.eval_shape(lambda x: nnx.clone(model).features(x), inputs(family, size))
    if isinstance(model, Pyramid):
        heights = [m.shape[1] for m in maps]
        assert [m.shape[-1] for m in maps] == list(model.map_features)
        assert all(b == -(-a // 2) for a, b in itertools.pairwise(heights))
    elif isinstance(maps[-1], tuple):
        assert [m[0].shape[:2] for m in maps] == [(2, cells.shape[1]) for _, cells in maps]
        assert [m[0].shape[1] for m in maps] == [71, 71, 35, 35]
        return
    elif maps[0].ndim == 3:  # of latents, which have no place
        assert {m.shape for m in maps} == {(2, *model.latents.shape)}
        return
    elif model.blocks.reductions is not None:
        assert [m.shape[1] for m in maps] == [6, 3, 3, 3]
        assert [m.shape[-1] for m in maps] == [model.width(i) for i in range(1, 5)] == [16, 24, 24, 24]
    else:
        assert {m.shape for m in maps} == {(2, *model.patch_embed.grid(size, size), 16)}
        assert len(maps) == 4
    assert all(m.shape[1] == m.shape[2] for m in maps)


@pytest.mark.parametrize("family", ["vit", "transformer", "swin", "bert"])  # one of each backbone
def test_features_after_the_final_norm(family: str) -> None:
    model = make(family, **shallow(family), **({"norm_order": "pre"} if family == "bert" else {}))
    x = inputs(family)

    def features() -> Any:
        plain = model.features(x)
        return plain, model.features(x, norm=True), model.norm(plain[-1])

    plain, normed, want = jax.jit(features)()
    np.testing.assert_allclose(normed[-1], want, atol=1e-5)
    assert not np.allclose(normed[-1], plain[-1], atol=1e-2)


@every
def test_what_decays_and_what_muon_takes(family: str) -> None:
    """Weights that multiply features decay: no table, no token, no rate of a state space. Muon's are the linear ones
    inside blocks.
    """
    model = outline(family)
    optimizer = optimizers.create(
        model, flatten(model, nnx.Param), {"name": "muon", "learning_rate": 0.1, "weight_decay": 0.1}
    )
    weights = re.compile(r"(^|\.)(kernel|C|initial\.\d+)$")
    assert {name for name in optimizer.decayed if not weights.search(name)} == set()
    assert optimizer.matrices
    inside = re.compile(r"(^|\.)blocks\.(reductions\.)?\d+\..*\.kernel$")
    assert {name for name in optimizer.matrices if not inside.search(name)} == set()


@classifiers
def test_reset_head(family: str) -> None:
    model = make(family, **shallow(family))
    model.reset_head(3)
    assert jax.eval_shape(lambda x: nnx.clone(model)(x), inputs(family)).shape == (2, 3)
    model.reset_head(0)
    assert jax.eval_shape(lambda x: nnx.clone(model)(x), inputs(family)).shape == (2, model.num_features)
    assert not any(name.startswith("head") for name in flatten(model))


@images
def test_other_channels_are_refused(family: str) -> None:
    assert jax.eval_shape(
        lambda x: make(family, in_channels=1, **shallow(family))(x), inputs(family)[..., :1]
    ).shape == (2, 5)
    model = tiny(family)  # made here: cached from inside a trace it would hold the trace's values
    with pytest.raises(ValueError, match="takes images of 3 channels, got 1"):
        jax.eval_shape(lambda x: nnx.clone(model)(x), inputs(family)[..., :1])


@pytest.mark.full
@of_new_parts
def test_bfloat16(family: str) -> None:
    """In the fewest blocks that have everything; beside float32 where a family has parameters of its own: of mixers
    tests/layers/test_mixers.py says how close they are.
    """
    x, sizes = inputs(family), least(family)
    model = make(family, dtype="bfloat16", **sizes)
    assert {leaf.dtype for leaf in flatten(model, nnx.Param).values()} == {jnp.dtype(jnp.float32)}
    if family not in OWNERS:
        assert jax.eval_shape(lambda x: called(nnx.clone(model), x), x).dtype == jnp.bfloat16
        return
    y, wide = run(model, x), run(make(family, **sizes), x)
    assert (y.dtype, wide.dtype) == (jnp.bfloat16, jnp.float32)
    assert np.std(wide) > 0
    assert relative(np.asarray(y, np.float32), wide) < 0.05


@every
def test_tokens_beyond_the_vocabulary_are_refused(family: str) -> None:
    if family in (*IMAGE_FAMILIES, *SERIES):
        pytest.skip("takes images, or series of numbers")
    if family in POINTERS:
        pytest.skip("takes points: tests/zoo/test_pointer_network.py")
    model, given = make(family, depth=1), inputs(family, 16)
    tokens = given if isinstance(given, tuple) else (given,)
    for token, number in itertools.product((11, 999, -1), range(len(tokens))):
        wrong = [array.copy() for array in tokens]
        wrong[number][1, 5] = token
        with pytest.raises(ValueError, match=rf"token {token} in row 1, place 5: the table has 11 entries"):
            model(*wrong)


@pytest.mark.parametrize(("family", "what"), [("bert", "tokens"), ("t5", "tokens"), ("vit", "images")])
def test_nothing_at_all_is_refused(family: str, what: str) -> None:
    with pytest.raises(ValueError, match=rf"there are no {what}: their shape is \(0, "):
        called(make(family, depth=1), inputs(family, batch=0))


def test_tokens_that_are_no_integers_are_refused() -> None:
    with pytest.raises(ValueError, match="tokens are integers, the rows of a table; got float32"):
        make("transformer", depth=1)(np.zeros((1, 4), np.float32))


@every
def test_names_come_and_go(family: str) -> None:
    """Under each naming, another model of the same sizes becomes the same bits."""
    pairs: dict[str, tuple[nnx.Module, nnx.Module]] = {}
    for naming, differing in {
        **{name: rules.config for name, rules in VARIANTS[smallest(family)].rules.items()},
        "zoo": {},
    }.items():
        differing = (
            {**differing, "num_classes": 0}
            if naming == "bare" and hasattr(VARIANTS[smallest(family)].config, "num_classes")
            else differing
        )
        key = repr(differing)
        if key not in pairs:
            pairs[key] = make(family, **differing) if differing else tiny(family), make(family, **differing)
        model, other = pairs[key]
        assign(other, {name: np.full(leaf.shape, 2, leaf.dtype) for name, leaf in flatten(other).items()})
        zoo.load(other, export(model, naming=naming), naming=naming)
        ours, theirs = flatten(model), flatten(other)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(leaf, theirs[name]) for name, leaf in ours.items()), naming


@every
def test_names_for_recipes_cover_every_parameter(family: str) -> None:
    model = tiny(family)
    parameters = flatten(model, nnx.Param)
    assert list(parameters) == [".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    ids = model.layer_ids()
    assert set(ids) == set(parameters)
    assert set(ids.values()) == set(range(max(ids.values()) + 1))  # no depth is left out
    spared = model.no_decay()
    assert spared <= set(parameters)
    assert {name for name, leaf in parameters.items() if leaf.ndim <= 1} <= spared
    assert not any(name.endswith("query.kernel") for name in spared)


@every
def test_unknown_hyper_parameter_gives_near_ones(family: str) -> None:
    with pytest.raises(ValueError, match=rf"{family} has no hyper-parameter 'drop_paths': did you mean 'drop_path'"):
        zoo.create(smallest(family), drop_paths=0.1)


def test_unknown_model_gives_near_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown model 'biformer_tyni': did you mean 'biformer_tiny'"):
        zoo.create("biformer_tyni")


def counted() -> list[Any]:
    """Variants whose papers count their parameters, the smallest of a family quick."""
    published = [(name, entry.family) for name, entry in VARIANTS.items() if entry.parameters is not None]
    least = {
        family: min((VARIANTS[n].parameters or 0, n) for n, f in published if f == family)[1] for _, family in published
    }
    return tiered(published, lambda row: least[row[1]] == row[0])


@pytest.mark.parametrize(("name", "family"), counted())
def test_published_parameter_count(name: str, family: str, request: pytest.FixtureRequest) -> None:
    """Of the smallest variant every block is made, and of others whose blocks are of several kinds."""
    entry = VARIANTS[name]
    if request.node.get_closest_marker("full") and counted_from_two(entry) == entry.parameters:
        return
    assert parameter_count(abstract(entry, entry.config)) == entry.parameters


@pytest.mark.parametrize("entry", VARIANTS.values(), ids=VARIANTS)
def test_registration(entry: Any) -> None:
    assert entry.name.startswith(entry.family) or entry.parameters or entry.rules or not entry.published
    assert hash(entry.config) == hash(dataclasses.replace(entry.config))
    assert entry.published or entry.parameters is None, "sizes of our own choice have no published count"


@classifiers
def test_pattern_alternates_mixers(family: str) -> None:
    model = make(family, pattern=("attention", {"name": "parallel", "branches": ("attention",)}), shared=False)
    names = [name for name in flatten(model) if "blocks" in name and "mixer." in name]
    assert any(".branches." in name for name in names)
    assert any(".branches." not in name for name in names)


@pytest.mark.parametrize("family", ["vit", "hvt"])  # without and with reductions between blocks
def test_features_of_a_shallow_model_come_in_order(family: str) -> None:
    model = make(family, depth=2)
    model.eval()
    graphdef, state = nnx.split(model)
    maps, last = jax.jit(
        lambda state, x: (
            nnx.merge(graphdef, state).features(x),
            nnx.merge(graphdef, state).features(x, indices=[0, 1]),
        )
    )(state, inputs(family, 16))
    for got, want in zip(maps, (last[0], last[0], last[0], last[1]), strict=True):
        jax.tree.map(np.testing.assert_array_equal, got, want)
