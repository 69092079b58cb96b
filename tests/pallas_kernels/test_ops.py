"""Every op x implementation x case: outputs and all gradients against the reference.

The reference in float64 is the truth. How far the reference itself strays in float32 is the
yardstick: a case with large logits or canceling terms loosens its own tolerance, nothing else does. Where rounding to
the scale of an array is enough of a tolerance, the yardstick is not computed.
TPU kernels are interpreted, in float32, which is what they serve, and in the full tier on a simulated TPU. GPU kernels
have test_attention_gpu.py and test_recurrences_gpu.py, implementations for several devices test_sequence.py.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

import pallas_kernels
from pallas_kernels.dispatch import OPS, Case, Implementation, Op, Refused, current_platform, interpreting
from tests.compilation import OPTIMIZED
from tests.pallas_kernels import test_attention, test_neighborhood_attention
from tests.tiers import tiered

SEED = 0
# Another order of summation costs a few times the reference's own rounding error, plus a few units
# in the last place (eps = 1.2e-7) of the array's scale and of the largest array beside it.
OWN_ERROR, OWN_SCALE, COMMON_SCALE = 8.0, 2e-6, 2e-7
FLOAT64 = 1e-8  # of the float32 tolerance; the two epsilons stand as 1.9e-9

# A TPU of two cores, each with memory of its own, which is NaN until it is written. They share the steps along
# "parallel" axes, in random order. What they do to each other's blocks is reported; reads outside of an array, and a
# return to a block of an output after others, raise. Interpreted as plain JAX, a kernel's steps run in order, a read
# outside of an array gives other numbers of it, and an output keeps what it was given.
# With this seed no axis of 2 to 5 steps keeps its order.
SIMULATED = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2, random_seed=4)
# JAX's splash attention is not: each core writes zeros to the same outputs, which are not read.
NOT_SIMULATED = {"splash"}
# Interpreting a TPU kernel costs a second or two, so it runs where it has a path of its own.
INTERPRETED = {
    "attention splash": "whole_blocks",
    "attention mosaic_tpu": """cross_grouped mask bias padding_causal_grouped query_padding large_logits sigmoid
        whole_blocks long_bias_for_all long_padding long_cache routed long_routed_score long_pattern
        pattern_cache_score segments_alone long_segments score""",
    "linear_attention mosaic_tpu": "plain token grouped_head both_ways_key abrupt_token fast_decay_token abrupt_key",
    "delta_rule mosaic_tpu": """three_steps_gated grouped identical_keys one_reflection_repeated
        identical_keys_beyond_one abrupt fast_decay""",
    "selective_scan mosaic_tpu": "everything many_states grouped slow fast padded_tail",
    "neighborhood_attention mosaic_tpu": "line_strides volume_padding",
}
# What its kernels lack, by the reasons that they give.
REFUSED = {
    "attention splash": "cross_grouped mask sigmoid score large_logits relative long_window",
    "attention mosaic_tpu": "sigmoid_masked relative rows routed_key_regions_heads large_bias_rest",
    "linear_attention mosaic_tpu": "both_ways_plain one_token_key packed_token value two_decays_token",
    "delta_rule mosaic_tpu": "one_token_three_steps key read packed_two_steps",
    "selective_scan mosaic_tpu": "one_token packed implicit",
    "neighborhood_attention mosaic_tpu": "map_padding",
}


def is_tested(op: Op, implementation: Implementation, case: Case) -> bool:
    if implementation.platforms is not None:
        return case.name in INTERPRETED.get(f"{op.name} {implementation.name}", "").split()
    return implementation.name != "reference" and implementation.considered()


PAIRS = [
    pytest.param(op, implementation, case, id=f"{op.name}-{implementation.name}-{case.name}")
    for op in OPS.values()
    for case in op.cases  # before the implementations: a worker computes the truth of a case once
    for implementation in op.implementations
    if is_tested(op, implementation, case)
]
# What the quick tier compares, in float32: something of every option; of kernels the first. Of an op that is not here,
# the first cases.
QUICK = {
    "attention": "padding_causal_grouped sinks_empty_rows bias_per_head cache_chunk whole_blocks long_window routed "
    "score",
    "linear_attention": "token both_ways_key packed_token packed_padded_key packed_both_ways value",
    "selective_scan": "everything grouped implicit packed_padded",
    "delta_rule": "grouped packed_two_steps packed_key_two_steps read",
    "neighborhood_attention": "line_strides map_padding",
    "toeplitz_product": "short long_both_ways",
}


# What float32 could get wrong and float64 does not: extreme and correlated numbers, and sums of many terms.
STRESS = re.compile(
    "large|offset|peaks|identical|correlated|parallel|reflect|abrupt|fast|slow|decay|down_to|hard|empty|"
    "packed_padded|long_padding"
)


def quick_cases(op: Op) -> list[str]:
    return QUICK[op.name].split() if op.name in QUICK else [case.name for case in op.cases[:4]]


def is_quick(op: Op, implementation: Implementation, case: Case) -> bool:
    names = quick_cases(op)
    return case.name in (names if implementation.platforms is None else names[:1])


def rows() -> Iterator[Any]:
    """Pairs in float32 where they are quick, kernels, or put its rounding to the test, the others in float64.

    Simulating a TPU takes twice as long as plain JAX, which is left to what is quick.
    As it is for users, a program is compiled for the first quick case alone, at three times the cost.
    """
    for pair in PAIRS:
        op, implementation, case = pair.values
        quick = is_quick(*pair.values)
        is_kernel = implementation.platforms is not None
        narrow = quick or is_kernel or STRESS.search(case.name) is not None
        forms = [("float32" if narrow else "float64", quick)]
        if is_kernel and implementation.name not in NOT_SIMULATED:
            forms = [*(forms if quick else ()), ("simulated", False)]
        if not is_kernel and case.name == quick_cases(op)[0]:
            forms.append(("optimized", False))
        for form, is_fast in forms:
            yield pytest.param(*pair.values, form, id=f"{form}-{pair.id}", marks=() if is_fast else pytest.mark.full)


def is_floating(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


def arrays_of(case: Case) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in case.arrays(np.random.default_rng(SEED)).items()}


def for_tpus(op: Op, name: str) -> bool:
    return next(i for i in op.implementations if i.name == name).platforms == ("tpu",)


@contextlib.contextmanager
def where_it_runs(op: Op, name: str, simulated: bool = False) -> Iterator[None]:
    """The context in which an implementation runs here: TPU kernels are interpreted, or run on a simulated TPU."""
    with interpreting(SIMULATED if simulated else True) if for_tpus(op, name) else contextlib.nullcontext():
        yield


@functools.lru_cache(16)  # programs take memory, and cases of one follow each other
def program(op_name: str, name: str, options: frozenset[tuple[str, Any]], optimized: bool, traced: str) -> Any:
    """All outputs, and the gradients of all floating arrays under one random cotangent: one program for all cases that
    differ in numbers alone; ``traced`` is what else the implementation reads while it is traced.
    """
    call = functools.partial(getattr(pallas_kernels, op_name), implementation=name, **dict(options))

    def run(floats: dict[str, jax.Array], rest: dict[str, jax.Array]) -> Any:
        def split(floats: dict[str, jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
            leaves = jax.tree.leaves(call(**floats, **rest))
            return [x for x in leaves if is_floating(x)], [x for x in leaves if not is_floating(x)]

        outputs, pullback, others = jax.vjp(split, floats, has_aux=True)
        rng = np.random.default_rng(SEED + 1)
        cotangents = [jnp.asarray(rng.standard_normal(x.shape), x.dtype) for x in outputs]
        return outputs, others, pullback(cotangents)[0]

    return jax.jit(run, compiler_options=OPTIMIZED if optimized else None)


def evaluate(
    op: Op, name: str, case: Case, dtype: type, optimized: bool = False, traced: str = "", simulated: bool = False
) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Outputs and gradients of a case."""
    with jax.enable_x64(dtype is np.float64), where_it_runs(op, name, simulated):
        traced = f"{current_platform()} {simulated} {traced}"
        run = program(op.name, name, frozenset(case.options.items()), optimized, traced)
        arrays = {n: np.asarray(x, dtype if is_floating(x) else x.dtype) for n, x in arrays_of(case).items()}
        floats = {n: x for n, x in arrays.items() if is_floating(x)}
        rest = {n: x for n, x in arrays.items() if not is_floating(x)}
        outputs, others, gradients = run(floats, rest)
    assert all(x.dtype == dtype for x in [*outputs, *gradients.values()])
    return [np.asarray(x) for x in [*outputs, *others]], {n: np.asarray(g) for n, g in gradients.items()}


def find(op_name: str, case_name: str) -> tuple[Op, Case]:
    op = OPS[op_name]
    return op, next(c for c in op.cases if c.name == case_name)


@functools.cache
def reference(op_name: str, case_name: str, dtype: type) -> Any:
    """The reference: in float64 the truth, in float32 the yardstick."""
    op, case = find(op_name, case_name)
    return evaluate(op, "reference", case, dtype)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """max|a-b|; infinities (an empty row's log-sum-exp) must agree in place and sign."""
    assert a.shape == b.shape
    finite = np.isfinite(b)
    np.testing.assert_array_equal(a[~finite], b[~finite])
    return float(np.max(np.abs(a[finite] - b[finite]), initial=0.0))


def scale(a: np.ndarray) -> float:
    return float(np.max(np.abs(a[np.isfinite(a)]), initial=0.0))


def by_name(outputs: list[np.ndarray], gradients: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Outputs and gradients as two sets of arrays, each with a scale of its own."""
    return [{f"output {i}": x for i, x in enumerate(outputs)}, gradients]


def compare(op: Op, case: Case, results: Any, shrink: float) -> None:
    """``results`` of :func:`evaluate` against the truth."""
    exact, got = by_name(*reference(op.name, case.name, np.float64)), by_name(*results)
    for i, wants in enumerate(exact):
        assert got[i].keys() == wants.keys()
        common = max(map(scale, wants.values()), default=0.0)
        for name, want in wants.items():
            found = got[i][name]
            assert not np.isnan(want).any(), f"{name}: the reference gives NaN"
            assert not np.isnan(found).any(), f"{name} has NaN"
            if not is_floating(want):
                np.testing.assert_array_equal(found, want, err_msg=name)
                continue
            error, tolerance = distance(found, want), shrink * (OWN_SCALE * scale(want) + COMMON_SCALE * common)
            if error > tolerance:
                single = by_name(*reference(op.name, case.name, np.float32))[i][name]
                tolerance += shrink * OWN_ERROR * distance(single, want)
            assert error <= tolerance, f"{name}: error {error:.3g}, allowed {tolerance:.3g}, scale {scale(want):.3g}"


@pytest.mark.parametrize(("op", "implementation", "case", "form"), list(rows()))
def test_agrees_with_reference(
    op: Op, implementation: Implementation, case: Case, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dtype, simulated = np.float64 if form == "float64" else np.float32, form == "simulated"
    try:
        results = evaluate(op, implementation.name, case, dtype, form == "optimized", simulated=simulated)
    finally:
        if simulated:  # else what a kernel that failed left in memory fails the next one
            pltpu.reset_tpu_interpret_mode_state()
    assert "RACE DETECTED" not in capsys.readouterr().out  # newer JAX raises
    compare(op, case, results, FLOAT64 if form == "float64" else 1.0)


# Ops written as loops in numpy.
BY_LOOPS = {"attention": test_attention.by_loops, "neighborhood_attention": test_neighborhood_attention.by_loops}


@pytest.mark.parametrize(
    ("op", "case"),
    tiered(
        [(OPS[name], case) for name in BY_LOOPS for case in OPS[name].cases if not case.name.startswith("long")],
        lambda row: row[1].name in quick_cases(row[0]),
    ),
    ids=lambda value: value.name,
)
def test_reference_agrees_with_loops(op: Op, case: Case) -> None:
    outputs, _ = reference(op.name, case.name, np.float64)
    with jax.enable_x64(True):  # scores are functions of JAX
        expected = BY_LOOPS[op.name](arrays_of(case), case.options)
    for a, b in zip(outputs, expected):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kernel", REFUSED)
def test_refusal_gives_its_reason(kernel: str) -> None:
    op, name = kernel.split()
    for case_name in REFUSED[kernel].split():
        with pytest.raises(Refused) as refused:
            evaluate(*(OPS[op], name, find(op, case_name)[1], np.float32))
        ((refusing, reason),) = refused.value.reasons
        assert refusing == name
        assert reason.strip()


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_op_is_complete(op: Op) -> None:
    """A public function of the op's name, a reference, uniquely named cases, ``implementation=None``."""
    public = getattr(pallas_kernels, op.name)
    assert inspect.signature(public).parameters["implementation"].default is None
    names = [i.name for i in op.implementations]
    assert "reference" in names
    assert len(set(names)) == len(names)
    assert op.cases
    assert len({c.name for c in op.cases}) == len(op.cases)
