"""Kernels on a mesh: what each device gets, and when none serves. That the results are those of one device is in
test_sequence.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from pallas_kernels import attention
from pallas_kernels.call import Call
from pallas_kernels.dispatch import OPS, Implementation, Op, platform, recording, use
from primitives import sequence

ARRAYS = {"q": (8, 5, 4, 3), "k": (8, 5, 2, 3), "bias": (1, 4, 5), "rates": (4,)}


@dataclasses.dataclass(frozen=True, eq=False)
class ToyCall(Call):
    axes: ClassVar = {"q": "blhd", "k": "blhd", "bias": "bhl", "rates": "h blh", "mask": "bl"}
    results = ("blhd", "bh")

    q: Any
    k: Any
    bias: Any = None
    rates: Any = None
    mask: Any = None
    factor: float = 2.0


@pytest.fixture
def got() -> Iterator[list[dict[str, Any]]]:
    """An op with a kernel for TPUs that records its arguments."""
    shapes: list[dict[str, Any]] = []

    def kernel(call: ToyCall) -> tuple[Any, Any]:
        shapes.append({name: x.shape for name, (x, _) in call.arrays.items()})
        return call.factor * call.q, call.q.sum((1, 3))

    def objection(call: ToyCall) -> str | None:
        return f"{call.q.shape[0]} rows are over 4" if call.q.shape[0] > 4 else None

    Op(
        "toy",
        (
            Implementation("kernel", kernel, ("tpu",), objection),
            Implementation("xla", kernel),
            Implementation("reference", kernel),
        ),
    )
    yield shapes
    del OPS["toy"]


def on(sizes: dict[str, int], kind: AxisType = AxisType.Auto) -> contextlib.AbstractContextManager[Any]:
    return jax.sharding.use_abstract_mesh(
        AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(kind,) * len(sizes))
    )


def run(sizes: dict[str, int], kind: AxisType = AxisType.Auto, **arrays: tuple[int, ...]) -> tuple[str, Any]:
    """What was chosen, and the shapes of what came out."""
    given = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in (ARRAYS | arrays).items()}
    with on(sizes, kind), platform("tpu"), recording() as choices:
        found = jax.eval_shape(lambda **arrays: OPS["toy"](ToyCall(**arrays)), **given)
    return str(choices[0]), [x.shape for x in found]


@pytest.mark.parametrize(
    ("sizes", "rows", "heads", "groups"),
    [
        ({"data": 2}, 4, 4, 2),
        ({"data": 2, "fsdp": 2, "tensor": 1, "sequence": 1}, 2, 4, 2),
        ({"fsdp": 2, "tensor": 2}, 4, 2, 1),
        ({"data": 8, "tensor": 4}, 1, 4, 2),  # two groups for four devices: each computes all heads
    ],
)
def test_each_device_gets_its_rows_and_its_heads(
    got: list[dict[str, Any]], sizes: dict[str, int], rows: int, heads: int, groups: int
) -> None:
    chosen, results = run(sizes)
    assert chosen == "toy: kernel"
    assert got == [{"q": (rows, 5, heads, 3), "k": (rows, 5, groups, 3), "bias": (1, heads, 5), "rates": (heads,)}]
    assert results == [(8, 5, 4, 3), (8, 4)], "the caller sees whole arrays"


def test_arrays_of_other_axes(got: list[dict[str, Any]]) -> None:
    run({"data": 2, "tensor": 2}, rates=(8, 5, 4), bias=(8, 1, 5), k=(8, 5, 1, 3))
    assert got == [{"q": (4, 5, 2, 3), "k": (4, 5, 1, 3), "bias": (4, 1, 5), "rates": (4, 5, 2)}]


@pytest.mark.parametrize(
    ("sizes", "kind", "reason"),
    [
        (
            {"data": 3, "fsdp": 2},
            AxisType.Auto,
            "8 rows can't be shared equally by the 6 devices of the mesh's data and fsdp",
        ),
        ({"tensor": 2}, AxisType.Auto, "8 rows are over 4"),
        ({"data": 2, "sequence": 2}, AxisType.Auto, "the mesh splits along 'sequence' arrays that a kernel needs"),
        ({"data": 2, "mine": 2}, AxisType.Auto, "the mesh splits along 'mine' arrays that a kernel needs"),
        ({"data": 2}, AxisType.Explicit, "the mesh splits along 'data' arrays that a kernel needs"),
    ],
)
def test_else_the_compiler_splits(
    got: list[dict[str, Any]], sizes: dict[str, int], kind: AxisType, reason: str
) -> None:
    chosen, _ = run(sizes, kind)
    assert chosen.startswith(f"toy: xla; not kernel: {reason}")
    assert got[0]["q"] == (8, 5, 4, 3)


def test_pieces_of_split_sequences_are_rows(got: list[dict[str, Any]]) -> None:
    with sequence.folded():
        chosen, _ = run({"data": 2, "sequence": 4})
    assert chosen == "toy: kernel"
    assert got[0]["q"] == (1, 5, 4, 3)


def test_one_device_is_left_alone(got: list[dict[str, Any]]) -> None:
    """8 rows are too many for it."""
    assert run({"data": 1, "tensor": 1})[0] == "toy: xla; not kernel: 8 rows are over 4"


def test_limits_are_those_of_a_device() -> None:
    """The gradient of a bias for each pair takes 2 GiB, of which a device may take one and has a quarter."""
    q, bias = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((8, 2048, 16, 64), (1, 1, 2048, 2048)))
    with on({"fsdp": 2, "tensor": 2}), platform("gpu"), recording() as choices:
        jax.eval_shape(lambda q, bias: attention(q, q, q, bias=bias), q, bias)
    assert [choice.implementation for choice in choices] == ["mosaic_gpu"]


def test_a_way_of_sharing_that_is_named_is_named_once(got: list[dict[str, Any]]) -> None:
    """What it calls on each part is chosen as if nothing was named."""
    op = OPS["toy"]
    with_way = Implementation("way", op.within, considered=lambda: False)
    op.implementations = (with_way, *op.implementations)
    with use(toy="way"), recording() as choices:
        jax.eval_shape(lambda q: op(ToyCall(q, q)), jax.ShapeDtypeStruct((1, 2, 3, 4), jnp.float32))
    assert [choice.implementation for choice in choices] == ["way", "xla"]
