"""Every registered mixer keeps the promises of :mod:`layers.mixer`."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers import Mixer, Place, Tokens, flatten
from layers.state import flatten_state
from pallas_kernels.dispatch import Op
from primitives import operations
from tests.layers.compiled_mixers import Compiled, abstract_program, compiled
from tests.layers.gradients import WITHOUT_GRADIENT
from tests.layers.mixer_cases import (
    CASES,
    FEATURES,
    FORMS,
    GRID,
    HEADS,
    LENGTH,
    OPTIONS,
    PADDED,
    VARIOUS,
    MixerCase,
    brings_parameters,
    relative,
)
from tests.layers.packing import TOLERANCE, Rows, alone, by_one_program, close, read
from tests.layers.test_packing import ALIKE
from tests.tiers import tiered

CLOSE = 2e-5  # float32: another order of the same sums
CHUNK = 8  # tokens that a call of extend brings at most


def of(cases: list[MixerCase]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", tiered(cases, lambda case: case.quick), ids=str)


every = of(CASES)
causal = of([case for case in CASES if case.causal])
# Where the set that a token attends to is chosen with knowledge of later tokens, the future may show.
streamed = of([case for case in CASES if case.causal and case.exact])


def padded_mask(shape: tuple[int, ...]) -> np.ndarray:
    """Trailing padding of another length in each row; of a grid, at the bottom and right."""
    mask = np.ones(shape[:-1], bool)
    for row in range(len(mask)):
        mask[row, shape[1] - 2 - row :] = False
        if len(shape) == 4:
            mask[row, :, shape[2] - 1 - row :] = False
    return mask


def filled(x: np.ndarray, mask: np.ndarray, fill: float) -> np.ndarray:
    """``x`` with another number in its padding."""
    return np.where(mask[..., None], x, np.float32(fill))


@every
def test_output_has_the_inputs_shape_and_dtype(case: MixerCase) -> None:
    c = compiled(case)
    x = c.real()
    y = c.output(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert np.isfinite(y).all()
    assert np.std(y) > 0


@every
def test_tokens_mix(case: MixerCase) -> None:
    """A change of one token changes the output of another: of some features, as a norm takes away what all share."""
    c = compiled(case)
    x = c.real()
    changed = x.copy()
    changed[:, 0, ..., ::2] += 2
    difference = np.abs(np.asarray(c.output(changed) - c.output(x)))
    assert difference[:, 1:].max() > 1e-4


@streamed
def test_the_future_changes_nothing(case: MixerCase) -> None:
    c = compiled(case)
    x = c.real()
    y = c.output(x)
    for start in (1, 8, LENGTH - 1):
        changed = x.copy()
        changed[:, start:] = np.random.default_rng(start).standard_normal(changed[:, start:].shape)
        other = c.output(changed)
        assert relative(other[:, :start], y[:, :start]) < 1e-6
        assert relative(other[:, start:], y[:, start:]) > 1e-3


@streamed
def test_one_token_at_a_time_equals_the_whole(case: MixerCase) -> None:
    c = compiled(case)
    x = c.real()
    assert relative(c.stepwise(x), c.output(x)) < CLOSE


@of([case for case in CASES if case.causal and case.exact and (case.quick or not case.packs)])
def test_random_chunks_with_ragged_rows_equal_the_whole(case: MixerCase) -> None:
    """Each call brings each row another number of tokens; what is masked is NaN and must leave no trace.

    Of other than first options, where documents are read piece by piece.
    """
    c = compiled(case)
    x = c.real()
    want = np.asarray(c.output(x))
    rng = np.random.default_rng(3)
    state, read, got = c.init_state(), np.zeros(2, int), np.zeros_like(want)
    while (read < LENGTH).any():
        counts = np.minimum(rng.integers(0, CHUNK + 1, 2), LENGTH - read)
        mask = np.arange(CHUNK) < counts[:, None]
        chunk = np.full((2, CHUNK, FEATURES), np.nan, np.float32)
        for row in range(2):
            chunk[row, : counts[row]] = x[row, read[row] : read[row] + counts[row]]
        y, new = jax.device_get(c.extend(chunk, state, mask))
        for row in range(2):
            got[row, read[row] : read[row] + counts[row]] = y[row, : counts[row]]
            if counts[row] == 0:
                jax.tree.map(lambda a, b, row=row: np.testing.assert_array_equal(a[row], b[row]), new, state)
        state, read = new, read + counts
    assert relative(got, want) < CLOSE


@causal
def test_state_has_batch_first_and_keeps_its_form(case: MixerCase) -> None:
    c = compiled(case)
    arrays = jax.make_jaxpr(lambda: c.merged().init_state(2, LENGTH))().jaxpr.outvars
    assert len(set(map(id, arrays))) == len(arrays), "two arrays of the state are one: it can't be donated"
    for dtype in (jnp.float32, jnp.bfloat16):
        five, state = (jax.eval_shape(lambda n=n, dtype=dtype: c.init_state(n, dtype)) for n in (5, 2))
        assert jax.tree.leaves(state)
        assert {leaf.shape[0] for leaf in jax.tree.leaves(five)} == {5}
        x, mask = (jax.ShapeDtypeStruct((2, CHUNK, *more), kind) for more, kind in (((FEATURES,), dtype), ((), bool)))
        y, after = c.extend.eval_shape(x, state, mask)
        assert y.shape == x.shape
        assert after == state


@every
def test_padding_may_hold_anything(case: MixerCase) -> None:
    c = compiled(case)
    x, weight = c.inputs(), c.inputs(1)
    mask = padded_mask(x.shape)
    a, *others = (np.asarray(c.gradient(filled(x, mask, fill), weight, mask)[1])[mask] for fill in (0, 1e30, np.nan))
    assert np.isfinite(a).all()
    assert all(relative(b, a) < 1e-6 for b in others)


@pytest.mark.parametrize(
    "case",
    tiered(
        [case for case in CASES if case.is_first], lambda case: case.quick and case.name in ("attention", "windowed")
    ),
    ids=str,
)
def test_a_padded_sequence_equals_the_shorter_one(case: MixerCase) -> None:
    c = compiled(case)
    if c.grid:
        # Regions and strides are shares of the grid: only a mask of everything must be as none.
        x = c.inputs()[:, :6]
        assert relative(c.masked(x, np.ones(x.shape[:-1], bool), None), c.whole(x)) < CLOSE
        return
    ids = None if "roles" in c.mixer.honors else c.one_document
    assert relative(c.masked(c.inputs(), c.all_real(), ids)[:, :LENGTH], c.whole(c.real())) < CLOSE


@every
def test_every_parameter_gets_a_gradient(case: MixerCase) -> None:
    c = compiled(case)
    x = c.inputs()
    (gradient, _), _ = c.gradient(x, c.inputs(1), padded_mask(x.shape))
    sizes = {name: float(np.abs(g).max()) for name, g in flatten_state(nnx.filter_state(gradient, nnx.Param)).items()}
    assert set(sizes) == case.parameters
    assert all(np.isfinite(size) for size in sizes.values())
    most = max(sizes.values(), default=0)
    dead = [name for name, size in sizes.items() if size < 1e-6 * most]
    assert [name for name in dead if not name.endswith(tuple(WITHOUT_GRADIENT))] == []


@every
def test_padding_gives_no_gradient(case: MixerCase) -> None:
    """The gradients are those of the real tokens, whatever the padding holds."""
    c = compiled(case)
    x, weight = c.inputs(), c.inputs(1)
    mask = padded_mask(x.shape)
    zeros, *others = (c.gradient(filled(x, mask, fill), weight, mask)[0] for fill in (0, 3, 1e30, np.nan))
    assert (np.asarray(zeros[1])[~mask] == 0).all()
    want = flatten_state(zeros[0])
    scale = max((float(np.abs(g).max()) for g in want.values()), default=0.0)
    for other in others:
        assert relative(other[1], zeros[1]) < CLOSE
        assert all(
            np.abs(np.asarray(g) - np.asarray(want[name])).max() < CLOSE * scale
            for name, g in flatten_state(other[0]).items()
        )


@every
def test_a_row_without_tokens_gives_no_gradient(case: MixerCase) -> None:
    """Such rows fill up a last batch."""
    c = compiled(case)
    x, weight = c.inputs(), c.inputs(1)
    mask = padded_mask(x.shape)
    mask[1] = False
    slopes, _ = c.gradient(x, weight, mask)
    assert all(np.isfinite(g).all() for g in flatten_state(slopes[0]).values())
    assert np.isfinite(slopes[1]).all()
    assert (np.asarray(slopes[1])[~mask] == 0).all()


def calls_of_ops(case: MixerCase, monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, ...]]:
    """What a mixer asks of ops: their names, arrays and options that are given, without values."""
    found = set()

    def noted(op: Op, call: Any, implementation: str | None = None) -> Any:
        options = {field.name: getattr(call, field.name) for field in dataclasses.fields(call)}
        given = {name for name, value in options.items() if value is not None and value is not False}
        found.add((op.name, *sorted(given)))
        return op.choose(call, implementation)[0].call(call)

    with monkeypatch.context() as patched:
        patched.setattr(Op, "__call__", noted)
        c = case.declared
        shape = (2, PADDED) if "sequence" in c.layouts else (2, *GRID)
        graphdef, state = nnx.split(c)
        jax.eval_shape(
            lambda state, x, mask: nnx.merge(graphdef, state)(x, mask),
            state,
            jax.ShapeDtypeStruct((*shape, FEATURES), jnp.float32),
            jax.ShapeDtypeStruct(shape, bool),
        )
    return found


@pytest.mark.full
def test_ops_by_default_give_what_their_references_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of mixers that call an op as those before did not: outputs, and gradients where the op itself is another one. All
    options of ops, and their gradients, are tests of ops'.
    """
    known: set[tuple[str, ...]] = set()
    for case in (case for case in CASES if case.quick):
        if (calls := calls_of_ops(case, monkeypatch)) <= known:
            continue
        is_new = not {op for op, *_ in calls} <= {op for op, *_ in known}
        known |= calls
        c = compiled(case)
        x, weight = (c.inputs(seed)[:, :6] if c.grid else c.inputs(seed) for seed in (0, 1))
        mask, ids = padded_mask(x.shape), None if "roles" in c.mixer.honors else c.one_document
        assert relative(*(np.asarray(run(x, mask, ids))[mask] for run in (c.masked_by_default, c.masked))) < CLOSE, case
        if is_new:
            (want, of_x), _ = jax.device_get(c.gradient(x, weight, mask))
            (got, of_x_too), _ = jax.device_get(c.gradient(x, weight, mask, by_default=True))
            assert relative(of_x_too, of_x) < CLOSE, case
            wanted, found = flatten_state(want), flatten_state(got)
            scale = max(float(np.abs(g).max()) for g in wanted.values())
            assert all(float(np.abs(found[name] - g).max()) < CLOSE * scale for name, g in wanted.items()), case


def outputs_alone(c: Compiled, rows: Rows, x: np.ndarray) -> np.ndarray:
    """Of the real tokens."""
    found = alone(lambda x, mask: c.forward(x, mask, c.one_document), rows, PADDED, x)
    return np.concatenate(found)[:, : rows.longest][rows.alone(rows.mask, False)]


def rows_of(c: Compiled) -> tuple[Rows, np.ndarray]:
    """Documents, and random tokens and weights for them."""
    rows = Rows.of(c.mixer.segment_multiple)
    rows = Rows(rows.lengths, max(rows.length, PADDED))
    return rows, np.random.default_rng(0).standard_normal((2, 2, rows.length, FEATURES)).astype(np.float32)


@pytest.mark.parametrize(
    "case", tiered([case for case in ALIKE if not (case.quick and case.causal)], lambda case: case.quick), ids=str
)
def test_documents_of_a_row_are_as_if_alone(case: MixerCase) -> None:
    """Outputs and gradients. In the quick tier a mixer with a state shows it piece by piece, below."""
    c = compiled(case)
    rows, (x, weight) = rows_of(c)
    close(*by_one_program(c.gradient, rows, PADDED, x, weight), TOLERANCE[np.float32])


@pytest.mark.full
@pytest.mark.parametrize(
    "case", [case for case in ALIKE if case.quick and case.causal and case.name not in VARIOUS], ids=str
)
def test_documents_of_a_row_that_looks_back_are_as_if_alone(case: MixerCase) -> None:
    """Outputs; those of VARIOUS and their gradients in test_packing.py, those of other options above."""
    c = compiled(case)
    rows, (x, _) = rows_of(c)
    y = c.masked(np.where(rows.mask[..., None], x, np.float32(np.nan)), rows.mask, rows.ids)
    assert relative(rows.alone(np.asarray(y))[rows.alone(rows.mask, False)], outputs_alone(c, rows, x)) < 1e-4


@pytest.mark.parametrize(
    "case", tiered([case for case in ALIKE if case.causal], lambda case: case.quick and case.name in VARIOUS), ids=str
)
def test_documents_read_piece_by_piece_are_as_if_alone(case: MixerCase) -> None:
    """Cut anywhere, they may begin anywhere; a cache has room for a document, not for a row. What is masked is NaN."""
    c, rows = compiled(case), Rows(((13, 2, 9), (2, 13, 4)), 24)
    assert rows.longest <= LENGTH < rows.length
    x = np.random.default_rng(0).standard_normal((2, rows.length, FEATURES)).astype(np.float32)

    def extend(x: np.ndarray, state: Any, mask: np.ndarray, ids: np.ndarray | None) -> Any:
        x = np.where(mask[..., None], x, np.float32(np.nan))
        return c.extend(x, state, mask) if ids is None else c.extend_documents(x, state, mask, ids)

    got = read(extend, c.init_state(), rows, x, size=CHUNK, always=not case.quick or case.name not in VARIOUS)
    assert relative(got, outputs_alone(c, rows, x)) < TOLERANCE[np.float32]


@pytest.mark.full
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.causal and case.exact and case.quick and case.is_first], ids=str
)
def test_gradients_go_through_the_state(case: MixerCase) -> None:
    """Those of tokens read in two pieces are those of the whole."""
    c = compiled(case)
    x, weight, mask = c.inputs(), c.inputs(1), c.all_real()
    (wanted, of_x), _ = jax.device_get(c.gradient(x, weight, mask))
    found, of_pieces = jax.device_get(c.gradient_in_pieces(x[:, :LENGTH], weight[:, :LENGTH]))
    assert relative(of_pieces, of_x[:, :LENGTH]) < CLOSE
    want, got = flatten_state(wanted), flatten_state(found)
    scale = max((float(np.abs(g).max()) for g in want.values()), default=0.0)
    assert all(np.abs(g - want[name]).max() < CLOSE * scale for name, g in got.items())


@pytest.mark.full
@pytest.mark.parametrize("case", list(filter(brings_parameters, FORMS)), ids=str)
def test_bfloat16_is_close(case: MixerCase) -> None:
    """In the forward pass alone; what options change in ops is of tests of ops. All errors count, for the largest
    one is one of chance.
    """
    c = compiled(case)
    assert {leaf.dtype for leaf in flatten(c.low, nnx.Param).values()} <= {jnp.dtype(jnp.float32)}
    x = c.real()[:, :6] if c.grid and case.is_first else c.real()  # else regions end in padding, which a mask excludes
    y = c.half(x, c.all_real() if c.grid and not case.is_first else None)
    want = np.asarray(c.whole(x) if case.is_first else c.output(x))
    assert y.dtype == jnp.bfloat16
    assert np.linalg.norm(np.asarray(y, np.float32) - want) < 0.03 * np.linalg.norm(want)


@pytest.mark.parametrize("case", tiered(CASES, lambda case: case.quick and case.name in VARIOUS), ids=str)
def test_declared_complexity_is_the_counted_one(case: MixerCase) -> None:
    counted = operations.exponent(lambda length: abstract_program(case, length))
    assert compiled(case).mixer.complexity == pytest.approx(counted, abs=0.1)


@pytest.mark.parametrize("name", layers.list_mixers())
def test_declaration(name: str) -> None:
    cls = layers.mixer_class(name)
    assert issubclass(cls, Mixer)
    assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name)
    assert (cls.__doc__ or "").strip()
    assert cls.__doc__ != Mixer.__doc__
    assert set(cls.layouts) <= {"sequence", "grid", "image"}
    assert cls.layouts
    assert cls.supports_causal or cls.supports_bidirectional
    assert cls.streaming in ("exact", "selection")
    assert isinstance(cls.paper, tuple)
    assert all(isinstance(row, int) and row >= 0 for row in cls.paper)
    if cls.streaming == "selection":
        assert "selection" in cls.__doc__, "the class says why later tokens take part in the choice"


def test_options_name_registered_mixers() -> None:
    assert set(OPTIONS) <= set(layers.list_mixers())


def test_a_field_that_is_not_honored_is_refused() -> None:
    x = np.zeros((1, 3, FEATURES), np.float32)
    mamba = layers.create_mixer("mamba", FEATURES, causal=True, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="Mamba does not honor positions: it orders tokens by their place"):
        mamba(x, Tokens(positions=np.arange(3)[None]))
    dilated = layers.create_mixer("dilated_attention", FEATURES, causal=True, num_heads=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="extend takes no positions"):
        dilated.extend(x, dilated.init_state(1, 4), Tokens(positions=np.arange(3)[None]))
    with pytest.raises(TypeError, match=r"Old overrides __call__ of Mixer: override mix\(x, tokens\) instead"):
        type("Old", (Mixer,), {"__call__": lambda self, x, mask=None: x})


@pytest.mark.parametrize("name", ["bidirectional", "dilated", "parallel"])
def test_combinators_map_positions(name: str) -> None:
    """Only differences of positions count, and they grow in the order of reading: twice the distance differs."""
    rotary = {"name": "attention", "rotary": 100.0}
    inside = {"branches": (rotary, rotary)} if name == "parallel" else {"inner": rotary}
    mixer = layers.create_mixer(name, FEATURES, num_heads=2, rngs=nnx.Rngs(0), **inside)
    x = np.random.default_rng(0).standard_normal((2, 6, FEATURES)).astype(np.float32)
    index = np.arange(6, dtype=np.int32)[None]
    graphdef, state = nnx.split(mixer)
    mix = jax.jit(lambda positions: nnx.merge(graphdef, state)(x, Tokens(positions=positions)))
    plain, moved, apart = mix(None), mix((2 if name == "dilated" else 1) * index + 7), mix(5 * index)
    if name != "dilated":  # whose inner sequences count from 0 where no positions are given
        assert relative(moved, plain) < 1e-5
    assert relative(apart, plain) > 1e-3


def test_a_reference_grid_is_not_read_backwards() -> None:
    inner = {"name": "attention", "num_heads": 2, "rotary": {"grid": (4, 4)}}
    with pytest.raises(ValueError, match="can't be read in both directions: leave its grid out"):
        layers.create_mixer("bidirectional", FEATURES, inner=inner, rngs=nnx.Rngs(0))


class TestCreateMixer:
    """How a user names a mixer, and what a wrong name says."""

    def make(self, spec: Any, **options: Any) -> Mixer:
        return layers.create_mixer(spec, FEATURES, rngs=nnx.Rngs(0), place=Place(num_heads=HEADS), **options)

    def test_a_name_a_dict_a_callable_and_a_mixer(self) -> None:
        mixer = self.make("attention")
        assert self.make(mixer) is mixer
        assert self.make({"name": "attention", "window": 3}).window == 3
        assert self.make({"name": "attention", "window": 3}, window=4).window == 4
        assert (
            self.make(lambda features, *, rngs: layers.MultiHeadAttention(features, num_heads=4, rngs=rngs)).num_heads
            == 4
        )

    def test_a_place_suggests_and_options_are_orders(self) -> None:
        assert self.make("attention").num_heads == 2
        assert self.make("attention", num_heads=8).num_heads == 8
        assert self.make({"name": "windowed", "inner": "attention"}).inner.inner.num_heads == 2

    def test_combinators_hand_options_on_and_what_is_ignored_is_named(self) -> None:
        low = layers.create_mixer("windowed", FEATURES, num_heads=4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        assert low.inner.inner.num_heads == 4
        assert low.inner.inner.query.dtype == jnp.bfloat16
        place = Place(num_heads=2, dropout=0.1)
        assert layers.create_mixer("delta_net", FEATURES, causal=True, place=place, rngs=nnx.Rngs(0)).ignored == (
            "dropout",
        )
        assert layers.create_mixer("attention", FEATURES, place=place, rngs=nnx.Rngs(0)).ignored == ()

    def test_unknown_name_gives_near_ones(self) -> None:
        near = "'attention' or 'retention' or '[a-z_]*attention'"  # as whatever is registered has
        with pytest.raises(
            ValueError, match=rf"unknown mixer 'atention': did you mean {near}\?; layers.list_mixers\(\) lists all"
        ):
            self.make("atention")

    def test_unknown_option_gives_near_ones(self) -> None:
        with pytest.raises(ValueError, match=r"mixer 'attention' has no option 'num_head': did you mean 'num_heads'"):
            self.make("attention", num_head=2)

    def test_dict_without_name(self) -> None:
        with pytest.raises(ValueError, match=r'needs "name"; it has \[\'window\'\]'):
            self.make({"window": 3})

    def test_bidirectional_only_can_not_be_causal(self) -> None:
        with pytest.raises(ValueError, match="BilevelRoutingAttention is bidirectional only"):
            self.make("bilevel_routing", causal=True)

    def test_bidirectional_has_no_state(self) -> None:
        with pytest.raises(NotImplementedError, match="not causal"):
            self.make("bidirectional").init_state(1)
