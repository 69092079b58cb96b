"""Names of released parameters: every operation has an inverse, and what does not fit is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from zoo.naming import Complex, Context, Each, Naming, Rearrange, Split, Tie, Unstack
from zoo.plan import plan

CONTEXT = Context(type("Config", (), {"heads": 2}), (0, 1))


@pytest.mark.parametrize(
    ("operation", "arrays"),
    [
        (Split(), [(2, 3), (4, 3)]),
        (Split(1), [(2, 3), (2, 5)]),
        (Unstack(), [(2, 3), (2, 3)]),
        (Unstack(1), [(2, 3), (2, 3)]),
        (Rearrange("1 (h w) d -> h w d"), [(2, 3, 4)]),
        (Rearrange("d h k -> d (h k)", h="heads"), [(3, 8)]),
        (Rearrange("(k h) d -> d (h k)", h=4), [(3, 8)]),
        (Each((Rearrange("1 n -> n"), None)), [(3,), (2, 2)]),
        (Tie(2), [(2, 3)]),
    ],
    ids=repr,
)
def test_operations_are_inverted(operation: Any, arrays: list[tuple[int, ...]]) -> None:
    rng = np.random.default_rng(0)
    ours = [rng.standard_normal(shape) for shape in arrays]
    released = operation.export(ours, CONTEXT)
    assert [a.shape for a in released] == operation.export_shapes(arrays, CONTEXT)
    again = operation.load(released, arrays, CONTEXT)
    assert all(np.array_equal(a, b) for a, b in zip(ours, again, strict=True))


def test_rearrange_permutes() -> None:
    released = np.arange(24).reshape(1, 6, 4)
    (ours,) = Rearrange("1 (h w) d -> d w h").load([released], [(4, 3, 2)], CONTEXT)
    assert ours[3, 2, 1] == released[0, 1 * 3 + 2, 3]


def test_complex_pairs() -> None:
    ours = np.array([[1 + 2j, 3 - 4j]], np.complex64)
    (released,) = Complex().export([ours], CONTEXT)
    assert released.tolist() == [[[1, 2], [3, -4]]]
    assert np.array_equal(Complex().load([released], [(1, 2)], CONTEXT)[0], ours)


def test_tied_arrays_that_differ_are_refused() -> None:
    naming = Naming([(("a", "b"), "table", Tie())])
    (entry,) = plan(naming, {"table": (2,)}, None)
    assert entry.optional == ("b",)
    with pytest.raises(ValueError, match="differ in the file"):
        entry.load([np.zeros(2), np.ones(2)])


def test_parameters_without_a_name_are_told() -> None:
    with pytest.raises(ValueError, match=r"1 parameters have no released name: extra\.kernel"):
        plan(Naming([("a", "a")]), {"a.kernel": (1, 1), "extra.kernel": (1, 1)}, None)
